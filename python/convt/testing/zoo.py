"""The transposed convolutions of 36 published models, with the batches that they are trained or used with.

Names are MODEL/LAYER: `unet-carvana/128to64@320x479` has 128 input and 64 output channels on 320 x 479 pixels. Layers
of mode "train" are those whose speed a training run waits for; "train/infer" has training batches of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

from convt.problem import Ints, Problem

from .layers import Entry


@dataclass(frozen=True)
class Row:
    """A layer of a model; bias and mode are the model's where None."""

    name: str
    problem: Problem
    bias: bool | None
    mode: str | None


@dataclass(frozen=True)
class Model:
    """A model and its layers, from the first to the last."""

    name: str
    mode: str
    bias: bool
    layers: tuple[Row, ...]


def _layer(
    name: str,
    batch: int,
    channels: tuple[int, int],
    input: Ints,
    filter: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
    bias: bool | None = None,
    mode: str | None = None,
) -> Row:
    """The same filter, stride and padding on every axis, and no dilation: no model of these has anything else."""
    rank = len(input)
    spread = [(value,) * rank for value in (filter, stride, padding, output_padding, 1)]
    return Row(name, Problem(batch, *channels, groups, input, *spread), bias, mode)


MODELS: dict[str, Model] = {
    "dcgan-64": Model(
        "DCGAN 64x64",
        "train",
        bias=False,
        layers=(
            _layer("100to512@1", 64, (100, 512), (1, 1), 4),
            _layer("512to256@4", 64, (512, 256), (4, 4), 4, stride=2, padding=1),
            _layer("256to128@8", 64, (256, 128), (8, 8), 4, stride=2, padding=1),
            _layer("128to64@16", 64, (128, 64), (16, 16), 4, stride=2, padding=1),
            _layer("64to3@32", 64, (64, 3), (32, 32), 4, stride=2, padding=1),
        ),
    ),
    "pix2pix-256": Model(
        "Pix2Pix U-Net-256",
        "train/infer",
        bias=False,
        layers=(
            _layer("512to512@1", 1, (512, 512), (1, 1), 4, stride=2, padding=1),
            _layer("1024to512@2", 1, (1024, 512), (2, 2), 4, stride=2, padding=1),
            _layer("1024to512@4", 1, (1024, 512), (4, 4), 4, stride=2, padding=1),
            _layer("1024to512@8", 1, (1024, 512), (8, 8), 4, stride=2, padding=1),
            _layer("1024to256@16", 1, (1024, 256), (16, 16), 4, stride=2, padding=1),
            _layer("512to128@32", 1, (512, 128), (32, 32), 4, stride=2, padding=1),
            _layer("256to64@64", 1, (256, 64), (64, 64), 4, stride=2, padding=1),
            _layer("128to3@128", 1, (128, 3), (128, 128), 4, stride=2, padding=1, bias=True),
        ),
    ),
    "cyclegan": Model(
        "CycleGAN ResNet-9",
        "infer",
        bias=True,
        layers=(
            _layer("256to128@64", 1, (256, 128), (64, 64), 3, stride=2, padding=1, output_padding=1),
            _layer("128to64@128", 1, (128, 64), (128, 128), 3, stride=2, padding=1, output_padding=1),
        ),
    ),
    "stylegan2-1024": Model(
        "StyleGAN2-ada FFHQ-1024",
        "train",
        bias=False,
        layers=(
            _layer("b8.conv0-512to512@4", 8, (512, 512), (4, 4), 3, stride=2),
            _layer("b32.conv0-512to512@16", 8, (512, 512), (16, 16), 3, stride=2),
            _layer("b64.conv0-512to512@32", 8, (512, 512), (32, 32), 3, stride=2),
            _layer("b128.conv0-512to256@64", 8, (512, 256), (64, 64), 3, stride=2),
            _layer("b256.conv0-256to128@128", 8, (256, 128), (128, 128), 3, stride=2),
            _layer("b512.conv0-128to64@256", 8, (128, 64), (256, 256), 3, stride=2),
            _layer("b1024.conv0-64to32@512", 8, (64, 32), (512, 512), 3, stride=2),
        ),
    ),
    "unet-carvana": Model(
        "U-Net (Carvana 959x640)",
        "train",
        bias=True,
        layers=(
            _layer("1024to512@40x59", 1, (1024, 512), (40, 59), 2, stride=2),
            _layer("512to256@80x119", 1, (512, 256), (80, 119), 2, stride=2),
            _layer("256to128@160x239", 1, (256, 128), (160, 239), 2, stride=2),
            _layer("128to64@320x479", 1, (128, 64), (320, 479), 2, stride=2),
        ),
    ),
    "nnunet-128": Model(
        "nnU-Net 3d_fullres 128^3",
        "train",
        bias=True,
        layers=(
            _layer("320to320@4^3", 2, (320, 320), (4, 4, 4), 2, stride=2),
            _layer("320to256@8^3", 2, (320, 256), (8, 8, 8), 2, stride=2),
            _layer("256to128@16^3", 2, (256, 128), (16, 16, 16), 2, stride=2),
            _layer("128to64@32^3", 2, (128, 64), (32, 32, 32), 2, stride=2),
            _layer("64to32@64^3", 2, (64, 32), (64, 64, 64), 2, stride=2),
        ),
    ),
    "swin-unetr-96": Model(
        "Swin-UNETR 96^3 fs48",
        "infer",
        bias=False,
        layers=(
            _layer("768to384@3^3", 4, (768, 384), (3, 3, 3), 2, stride=2),
            _layer("384to192@6^3", 4, (384, 192), (6, 6, 6), 2, stride=2),
            _layer("192to96@12^3", 4, (192, 96), (12, 12, 12), 2, stride=2),
            _layer("96to48@24^3", 4, (96, 48), (24, 24, 24), 2, stride=2),
            _layer("48to48@48^3", 4, (48, 48), (48, 48, 48), 2, stride=2),
        ),
    ),
    "monai-unet-96": Model(
        "MONAI UNet (16..256) 96^3",
        "train",
        bias=True,
        layers=(
            _layer("384to64@6^3", 4, (384, 64), (6, 6, 6), 3, stride=2, padding=1, output_padding=1),
            _layer("128to32@12^3", 4, (128, 32), (12, 12, 12), 3, stride=2, padding=1, output_padding=1),
            _layer("64to16@24^3", 4, (64, 16), (24, 24, 24), 3, stride=2, padding=1, output_padding=1),
            _layer("32to2@48^3", 4, (32, 2), (48, 48, 48), 3, stride=2, padding=1, output_padding=1),
        ),
    ),
    "fcn-32s": Model(
        "FCN-32s VOC",
        "infer",
        bias=False,
        layers=(
            _layer("21to21-k64s32", 1, (21, 21), (12, 16), 64, stride=32),
        ),
    ),
    "fcn-8s": Model(
        "FCN-8s VOC",
        "infer",
        bias=False,
        layers=(
            _layer("21to21-k4s2", 1, (21, 21), (12, 16), 4, stride=2),
            _layer("21to21-k16s8", 1, (21, 21), (54, 70), 16, stride=8),
        ),
    ),
    "mask-rcnn": Model(
        "Mask R-CNN mask head",
        "infer",
        bias=True,
        layers=(
            _layer("256to256@14-100", 100, (256, 256), (14, 14), 2, stride=2),
            _layer("256to256@14-1024", 1024, (256, 256), (14, 14), 2, stride=2, mode="train"),
        ),
    ),
    "keypoint-rcnn": Model(
        "Keypoint R-CNN head",
        "infer",
        bias=True,
        layers=(
            _layer("512to17@14", 100, (512, 17), (14, 14), 4, stride=2, padding=1),
        ),
    ),
    "yolov8n-seg": Model(
        "YOLOv8n-seg Proto",
        "infer",
        bias=True,
        layers=(
            _layer("64to64@80", 16, (64, 64), (80, 80), 2, stride=2),
        ),
    ),
    "yolov8l-seg": Model(
        "YOLOv8l-seg Proto",
        "infer",
        bias=True,
        layers=(
            _layer("256to256@80", 16, (256, 256), (80, 80), 2, stride=2),
        ),
    ),
    "pointpillars": Model(
        "PointPillars KITTI neck",
        "infer",
        bias=False,
        layers=(
            _layer("64to128-k1s1@248x216", 4, (64, 128), (248, 216), 1),
            _layer("128to128-k2s2@124x108", 4, (128, 128), (124, 108), 2, stride=2),
            _layer("256to128-k4s4@62x54", 4, (256, 128), (62, 54), 4, stride=4),
        ),
    ),
    "centerpoint-nuscenes": Model(
        "CenterPoint/SECOND neck nuScenes",
        "infer",
        bias=False,
        layers=(
            _layer("256to256-k2s2@90", 4, (256, 256), (90, 90), 2, stride=2),
        ),
    ),
    "centerpoint-waymo": Model(
        "CenterPoint-Pillar Waymo neck",
        "infer",
        bias=False,
        layers=(
            _layer("128to128-k2s2@234", 4, (128, 128), (234, 234), 2, stride=2),
            _layer("256to128-k4s4@117", 4, (256, 128), (117, 117), 4, stride=4),
        ),
    ),
    "centernet": Model(
        "CenterNet ResNet-DCN deconv",
        "train",
        bias=False,
        layers=(
            _layer("256to256@16", 32, (256, 256), (16, 16), 4, stride=2, padding=1),
            _layer("128to128@32", 32, (128, 128), (32, 32), 4, stride=2, padding=1),
            _layer("64to64@64", 32, (64, 64), (64, 64), 4, stride=2, padding=1),
        ),
    ),
    "dla-34": Model(
        "DLA-34 IDAUp depthwise",
        "train",
        bias=False,
        layers=(
            _layer("dw256-k4s2@16", 32, (256, 256), (16, 16), 4, stride=2, padding=1, groups=256),
            _layer("dw128-k4s2@32", 32, (128, 128), (32, 32), 4, stride=2, padding=1, groups=128),
            _layer("dw64-k4s2@64", 32, (64, 64), (64, 64), 4, stride=2, padding=1, groups=64),
            _layer("dw64-k8s4@32", 32, (64, 64), (32, 32), 8, stride=4, padding=2, groups=64),
        ),
    ),
    "fsrcnn-x2": Model(
        "FSRCNN x2 to 1080p",
        "infer",
        bias=True,
        layers=(
            _layer("56to1-k9s2@540x960", 1, (56, 1), (540, 960), 9, stride=2, padding=4, output_padding=1),
        ),
    ),
    "fsrcnn-x4": Model(
        "FSRCNN x4 to 1080p",
        "infer",
        bias=True,
        layers=(
            _layer("56to1-k9s4@270x480", 1, (56, 1), (270, 480), 9, stride=4, padding=4, output_padding=3),
        ),
    ),
    "rife-1080p": Model(
        "RIFE 1080p",
        "infer",
        bias=True,
        layers=(
            _layer("240to5@68x120", 1, (240, 5), (68, 120), 4, stride=2, padding=1),
            _layer("150to5@136x240", 1, (150, 5), (136, 240), 4, stride=2, padding=1),
            _layer("90to5@272x480", 1, (90, 5), (272, 480), 4, stride=2, padding=1),
            _layer("512to128@68x120", 1, (512, 128), (68, 120), 4, stride=2, padding=1),
            _layer("256to64@136x240", 1, (256, 64), (136, 240), 4, stride=2, padding=1),
            _layer("128to32@272x480", 1, (128, 32), (272, 480), 4, stride=2, padding=1),
            _layer("64to16@544x960", 1, (64, 16), (544, 960), 4, stride=2, padding=1),
        ),
    ),
    "vqvae2-256": Model(
        "VQ-VAE-2 256x256",
        "train",
        bias=True,
        layers=(
            _layer("128to64@32", 128, (128, 64), (32, 32), 4, stride=2, padding=1),
            _layer("64to64@32", 128, (64, 64), (32, 32), 4, stride=2, padding=1),
            _layer("128to64@64", 128, (128, 64), (64, 64), 4, stride=2, padding=1),
            _layer("64to3@128", 128, (64, 3), (128, 128), 4, stride=2, padding=1),
        ),
    ),
    "hifigan-train": Model(
        "HiFi-GAN v1 train",
        "train",
        bias=True,
        layers=(
            _layer("up0-512to256-k16s8@32", 16, (512, 256), (32,), 16, stride=8, padding=4),
            _layer("up1-256to128-k16s8@256", 16, (256, 128), (256,), 16, stride=8, padding=4),
            _layer("up2-128to64-k4s2@2048", 16, (128, 64), (2048,), 4, stride=2, padding=1),
            _layer("up3-64to32-k4s2@4096", 16, (64, 32), (4096,), 4, stride=2, padding=1),
        ),
    ),
    "hifigan-infer": Model(
        "HiFi-GAN v1 infer 10s",
        "infer",
        bias=True,
        layers=(
            _layer("up0-512to256-k16s8@862", 1, (512, 256), (862,), 16, stride=8, padding=4),
            _layer("up1-256to128-k16s8@6896", 1, (256, 128), (6896,), 16, stride=8, padding=4),
            _layer("up2-128to64-k4s2@55168", 1, (128, 64), (55168,), 4, stride=2, padding=1),
            _layer("up3-64to32-k4s2@110336", 1, (64, 32), (110336,), 4, stride=2, padding=1),
        ),
    ),
    "hifigan-infer-x32": Model(
        "HiFi-GAN v1 infer 10s x32",
        "infer",
        bias=True,
        layers=(
            _layer("up0-512to256-k16s8@862", 32, (512, 256), (862,), 16, stride=8, padding=4),
            _layer("up1-256to128-k16s8@6896", 32, (256, 128), (6896,), 16, stride=8, padding=4),
            _layer("up2-128to64-k4s2@55168", 32, (128, 64), (55168,), 4, stride=2, padding=1),
            _layer("up3-64to32-k4s2@110336", 32, (64, 32), (110336,), 4, stride=2, padding=1),
        ),
    ),
    "bigvgan-train": Model(
        "BigVGAN v2 44k train",
        "train",
        bias=True,
        layers=(
            _layer("up0-1536to768-k16s8@128", 4, (1536, 768), (128,), 16, stride=8, padding=4),
            _layer("up1-768to384-k8s4@1024", 4, (768, 384), (1024,), 8, stride=4, padding=2),
            _layer("up2-384to192-k4s2@4096", 4, (384, 192), (4096,), 4, stride=2, padding=1),
            _layer("up3-192to96-k4s2@8192", 4, (192, 96), (8192,), 4, stride=2, padding=1),
            _layer("up4-96to48-k4s2@16384", 4, (96, 48), (16384,), 4, stride=2, padding=1),
            _layer("up5-48to24-k4s2@32768", 4, (48, 24), (32768,), 4, stride=2, padding=1),
        ),
    ),
    "bigvgan-infer": Model(
        "BigVGAN v2 44k infer 10s",
        "infer",
        bias=True,
        layers=(
            _layer("up0-1536to768-k16s8@861", 1, (1536, 768), (861,), 16, stride=8, padding=4),
            _layer("up1-768to384-k8s4@6888", 1, (768, 384), (6888,), 8, stride=4, padding=2),
            _layer("up2-384to192-k4s2@27552", 1, (384, 192), (27552,), 4, stride=2, padding=1),
            _layer("up3-192to96-k4s2@55104", 1, (192, 96), (55104,), 4, stride=2, padding=1),
            _layer("up4-96to48-k4s2@110208", 1, (96, 48), (110208,), 4, stride=2, padding=1),
            _layer("up5-48to24-k4s2@220416", 1, (48, 24), (220416,), 4, stride=2, padding=1),
        ),
    ),
    "bigvgan-upsample": Model(
        "BigVGAN alias-free UpSample1d",
        "infer",
        bias=False,
        layers=(
            _layer("dw768-k12s2@6888", 1, (768, 768), (6898,), 12, stride=2, groups=768),
            _layer("dw192-k12s2@55104", 1, (192, 192), (55114,), 12, stride=2, groups=192),
            _layer("dw48-k12s2@220416", 1, (48, 48), (220426,), 12, stride=2, groups=48),
            _layer("dw24-k12s2@440832", 1, (24, 24), (440842,), 12, stride=2, groups=24),
        ),
    ),
    "melgan-train": Model(
        "MelGAN train",
        "train",
        bias=True,
        layers=(
            _layer("up0-512to256-k16s8@32", 16, (512, 256), (32,), 16, stride=8, padding=4),
            _layer("up1-256to128-k16s8@256", 16, (256, 128), (256,), 16, stride=8, padding=4),
            _layer("up2-128to64-k4s2@2048", 16, (128, 64), (2048,), 4, stride=2, padding=1),
            _layer("up3-64to32-k4s2@4096", 16, (64, 32), (4096,), 4, stride=2, padding=1),
        ),
    ),
    "encodec-24k": Model(
        "EnCodec 24k decoder 64x1s",
        "train",
        bias=True,
        layers=(
            _layer("up0-512to256-k16s8@75", 64, (512, 256), (75,), 16, stride=8),
            _layer("up1-256to128-k10s5@600", 64, (256, 128), (600,), 10, stride=5),
            _layer("up2-128to64-k8s4@3000", 64, (128, 64), (3000,), 8, stride=4),
            _layer("up3-64to32-k4s2@12000", 64, (64, 32), (12000,), 4, stride=2),
        ),
    ),
    "dac-44k": Model(
        "DAC 44k decoder train",
        "train",
        bias=True,
        layers=(
            _layer("up0-1536to768-k16s8@32", 72, (1536, 768), (32,), 16, stride=8, padding=4),
            _layer("up1-768to384-k16s8@256", 72, (768, 384), (256,), 16, stride=8, padding=4),
            _layer("up2-384to192-k8s4@2048", 72, (384, 192), (2048,), 8, stride=4, padding=2),
            _layer("up3-192to96-k4s2@8192", 72, (192, 96), (8192,), 4, stride=2, padding=1),
        ),
    ),
    "mimi": Model(
        "Mimi decoder 8x10s",
        "infer",
        bias=True,
        layers=(
            _layer("up0-1024to512-k16s8@250", 8, (1024, 512), (250,), 16, stride=8),
            _layer("up1-512to256-k12s6@2000", 8, (512, 256), (2000,), 12, stride=6),
            _layer("up2-256to128-k10s5@12000", 8, (256, 128), (12000,), 10, stride=5),
            _layer("up3-128to64-k8s4@60000", 8, (128, 64), (60000,), 8, stride=4),
        ),
    ),
    "mimi-upsample": Model(
        "Mimi learnt upsample",
        "infer",
        bias=False,
        layers=(
            _layer("dw512-k4s2@125", 8, (512, 512), (125,), 4, stride=2, groups=512),
        ),
    ),
    "wavegan": Model(
        "WaveGAN 16384",
        "train",
        bias=True,
        layers=(
            _layer("1024to512@16", 64, (1024, 512), (16,), 25, stride=4, padding=11, output_padding=1),
            _layer("512to256@64", 64, (512, 256), (64,), 25, stride=4, padding=11, output_padding=1),
            _layer("256to128@256", 64, (256, 128), (256,), 25, stride=4, padding=11, output_padding=1),
            _layer("128to64@1024", 64, (128, 64), (1024,), 25, stride=4, padding=11, output_padding=1),
            _layer("64to1@4096", 64, (64, 1), (4096,), 25, stride=4, padding=11, output_padding=1),
        ),
    ),
    "htdemucs": Model(
        "HTDemucs time branch 10s",
        "infer",
        bias=True,
        layers=(
            _layer("384to192@1723", 1, (384, 192), (1723,), 8, stride=4),
            _layer("192to96@6891", 1, (192, 96), (6891,), 8, stride=4),
            _layer("96to48@27563", 1, (96, 48), (27563,), 8, stride=4),
            _layer("48to8@110250", 1, (48, 8), (110250,), 8, stride=4),
        ),
    ),
}  # fmt: skip

LAYERS: dict[str, Entry] = {
    f"{key}/{layer.name}": Entry(
        layer.problem,
        model.bias if layer.bias is None else layer.bias,
        model.mode if layer.mode is None else layer.mode,
        model.name,
    )
    for key, model in MODELS.items()
    for layer in model.layers
}
