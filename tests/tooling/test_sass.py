"""The machine code of the built module: what must be there, what must not, and registers within their budget."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest

from convt import _C

ROOT = Path(__file__).resolve().parents[2]
# In the order of Operand in cuda/config/tile_config.hpp, with the mma.sync of each.
OPERANDS = ("tf32", "ieee", "bfloat16", "float16")
HMMA = {
    "tf32": "HMMA.1688.F32.TF32",
    "ieee": "HMMA.1688.F32.TF32",
    "bfloat16": "HMMA.16816.F32.BF16",
    "float16": "HMMA.16816.F32",
}
HOPPER = "sm_90a"
HGMMA = {
    "tf32": "HGMMA.64x128x8.F32.TF32",
    "bfloat16": "HGMMA.64x128x16.F32.BF16",
    "float16": "HGMMA.64x128x16.F32",
}
REGISTERS = 65536  # of a multiprocessor; a thread block gets them in eights per thread

pytestmark = pytest.mark.skipif(
    _C.build_info()["cuda"] is None, reason="this build of convt has no CUDA kernels to disassemble"
)


@dataclass
class Function:
    """A kernel for one architecture."""

    name: str  # mangled
    architecture: str
    registers: int = 0
    stack: int = 0
    local: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)  # with their modifiers
    fresh: int = 0  # HMMA whose accumulator is zero
    grouped: list[str] = field(default_factory=list)  # instructions of warpgroups with their operands, in order

    def __str__(self) -> str:
        return f"{self.name} for {self.architecture}"

    def count(self, start: str) -> int:
        """Instructions with this beginning."""
        return sum(count for opcode, count in self.opcodes.items() if opcode.startswith(start))


@dataclass
class Gemm:
    """An instance of a GEMM on tensor cores: the numbers of its line in the list of configurations, and its operand."""

    function: Function
    config: dict[str, int]
    operand: str

    @property
    def blocks(self) -> int:
        """Thread blocks that a multiprocessor has to have registers for; the rules are those of blocks_of."""
        blocks = self.config["blocks"]
        if self.operand != "ieee":
            return blocks
        if "columns" in self.config:
            return max(blocks - 1, 1)
        return 2 if blocks == 3 else blocks

    @property
    def copies(self) -> int:
        """mma.sync for a product."""
        return 3 if self.operand == "ieee" else 1

    @property
    def warp_tiles(self) -> int:
        """Tiles of 16 by 8 sums of a warp."""
        config = self.config
        across = config["columns"] if "columns" in config else config["pixels"]
        return config["rows"] // config["warps_m"] // 16 * (across // config["warps_n"] // 8)

    def __str__(self) -> str:
        return f"{self.operand} {self.config} for {self.function.architecture}"


@lru_cache
def tool(name: str) -> str:
    """A disassembler: of NVIDIA's wheels (the extra `test` has them), or on PATH."""
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files(f"nvidia-cuda-{name}") or ():
            if file.name == name and os.access(file.locate(), os.X_OK):
                return str(file.locate())
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is neither installed (pip install nvidia-cuda-{name}) nor on PATH")
    return found


def lines(*command: str | Path, cwd: Path | None = None):
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield from process.stdout
        complaints = process.stderr.read()
    assert process.returncode == 0, f"{command}: {complaints}"


INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)(.*)")


def disassemble(cubin: Path, architecture: str) -> list[Function]:
    functions: list[Function] = []
    for line in lines(tool("nvdisasm"), "-c", "-ndf", cubin):
        if line.startswith(".text."):
            functions.append(Function(line.strip().removeprefix(".text.").removesuffix(":"), architecture))
        elif instruction := INSTRUCTION.match(line):
            functions[-1].opcodes[instruction[1]] += 1
            functions[-1].fresh += instruction[1].startswith("HMMA") and ", RZ" in instruction[2]
            if instruction[1].startswith(("HGMMA", "WARPGROUP", "USETMAXREG")):
                functions[-1].grouped.append(f"{instruction[1]} {instruction[2].split(';')[0].strip()}".strip())
    return functions


def resources(module: str) -> dict[tuple[str, str], dict[str, int]]:
    """(architecture, function) to what `cuobjdump -res-usage` says."""
    found, architecture, name = {}, "", ""
    for line in lines(tool("cuobjdump"), "-res-usage", module):
        if match := re.match(r"\s*arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif name and (used := dict(re.findall(r"(\w+):(\d+)", line))):
            found[architecture, name] = {key: int(value) for key, value in used.items()}
            name = ""
    return found


@pytest.fixture(scope="session")
def functions(tmp_path_factory) -> list[Function]:
    """Every kernel in the module that Python imported."""
    folder = tmp_path_factory.mktemp("sass")
    for _ in lines(tool("cuobjdump"), "-xelf", "all", _C.__file__, cwd=folder):
        pass
    cubins = [(path, re.search(r"\.(sm_\w+)\.cubin$", path.name)[1]) for path in sorted(folder.glob("*.cubin"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = [function for each in pool.map(lambda pair: disassemble(*pair), cubins) for function in each]
    used = resources(_C.__file__)
    for function in made:
        told = used[function.architecture, function.name]
        function.registers, function.stack, function.local = told["REG"], told["STACK"], told["LOCAL"]
    return made


@lru_cache
def fields(kind: str) -> tuple[str, ...]:
    """Fields of TileConfig, WeightConfig or OuterConfig, in order."""
    file = f"{kind.removesuffix('Config').lower()}_config.hpp"
    text = (ROOT / "cuda" / "config" / file).read_text().split(f"struct {kind} {{")[1]
    return tuple(re.findall(r"^  (?:int|bool) (\w+)(?: = \w+)?;", text, re.MULTILINE))


def instances(functions: list[Function], kernel: str, kind: str) -> list[Gemm]:
    """The instances of a kernel, by their mangled template arguments."""
    made = []
    for function in functions:
        pattern = rf"\d{kernel}I.*{kind}E((?:L[ib]\d+E)+)(?:LN\w*?EngineE\dE)?E+L.*?OperandE(\d)E"
        if arguments := re.search(pattern, function.name):
            numbers = [int(number) for number in re.findall(r"L[ib](\d+)E", arguments[1])]
            numbers += [0] * (len(fields(kind)) - len(numbers))  # trailing zeros are not mangled
            made.append(Gemm(function, dict(zip(fields(kind), numbers, strict=True)), OPERANDS[int(arguments[2])]))
    assert made, f"no instance of {kernel} among {len(functions)} kernels"
    return made


@pytest.fixture(scope="session")
def gemms(functions) -> list[Gemm]:
    """The instances of the implicit GEMM whose warps multiply: of the forward and of grad_input."""
    return instances(functions, "implicit_gemm", "TileConfig")


@pytest.fixture(scope="session")
def every_warpgroup_gemm(functions) -> list[Gemm]:
    """Those whose warpgroups multiply: on Hopper, and what stands for them elsewhere."""
    return instances(functions, "warpgroup_gemm", "TileConfig")


@pytest.fixture(scope="session")
def warpgroup_gemms(every_warpgroup_gemm) -> list[Gemm]:
    return [gemm for gemm in every_warpgroup_gemm if gemm.function.architecture == HOPPER]


@pytest.fixture(scope="session")
def weight_gemms(functions) -> list[Gemm]:
    """Those of the weight gradient."""
    return instances(functions, "weight_gemm", "WeightConfig")


@pytest.fixture(scope="session")
def every_outer_gemm(functions) -> list[Gemm]:
    """Those of the weight gradient whose warpgroups multiply, and what stands for them elsewhere."""
    return instances(functions, "outer_gemm", "OuterConfig")


@pytest.fixture(scope="session")
def outer_gemms(every_outer_gemm) -> list[Gemm]:
    return [gemm for gemm in every_outer_gemm if gemm.function.architecture == HOPPER]


def innermost(gemm: Gemm) -> int:
    """0 for pixels, 1 for channels."""
    return int(re.search(r"InnermostE(\d)E", gemm.function.name)[1])


def way_in(gemm: Gemm) -> int:
    """0 where patches are gathered, 1 where they come in boxes."""
    return int(re.search(r"WayInE(\d)E", gemm.function.name)[1])


def architectures() -> set[str]:
    built = _C.build_info()["cuda_architectures"].split(", ")
    return {f"sm_{name.removesuffix('-real')}" for name in built if name.endswith("-real")}


@pytest.mark.parametrize("operator", ["forward", "grad_weight"])
def test_every_configuration_is_there(gemms, every_warpgroup_gemm, weight_gemms, every_outer_gemm, operator):
    """For every operand that it multiplies, and for no other; warpgroups' weight gradients for each order of memory."""
    assert architectures() >= {"sm_80", HOPPER}
    along_pixels, along_channels = ([gemm for gemm in every_outer_gemm if innermost(gemm) == at] for at in (0, 1))
    assert Counter(map(str, along_pixels)) == Counter(map(str, along_channels))
    gathered, boxes = ([gemm for gemm in every_warpgroup_gemm if way_in(gemm) == at] for at in (0, 1))
    assert Counter(map(str, gathered)) == Counter(map(str, boxes))
    made = [*gemms, *gathered] if operator == "forward" else [*weight_gemms, *along_pixels]
    found = Counter((gemm.function.architecture, gemm.operand) for gemm in made)
    legal = {operand: len(_C.cuda_configs(operator, operand)) for operand in OPERANDS}
    assert found == {(name, operand): count for name in architectures() for operand, count in legal.items()}
    different = Counter((gemm.function.architecture, gemm.operand, *gemm.config.values()) for gemm in made)
    assert set(different.values()) == {1}


def test_gemms_multiply_on_tensor_cores(gemms):
    for gemm in gemms:
        function = gemm.function
        products = function.opcodes[HMMA[gemm.operand]]
        assert products == function.count("HMMA") > 0, f"{gemm}: {function.opcodes}"
        assert products % (gemm.warp_tiles * gemm.copies) == 0, f"{gemm}: {products} products"
        if gemm.operand == "ieee":
            # Low times high, high times low, high times high: the first begins a sum, which is then added in float32.
            assert function.fresh * 3 == products, f"{gemm}: {function.fresh} of {products} begin a sum"
            assert function.count("FADD") >= 4 * function.fresh, f"{gemm}: {function.opcodes}"


def test_weight_gemms_multiply_a_box_and_no_more(weight_gemms):
    """All MMA steps of a box are written out, each product once."""
    for gemm in weight_gemms:
        function, depth = gemm.function, 8 if gemm.operand in ("tf32", "ieee") else 16
        products = function.opcodes[HMMA[gemm.operand]]
        assert products == function.count("HMMA"), f"{gemm}: {function.opcodes}"
        assert products == gemm.warp_tiles * gemm.copies * (gemm.config["pixels"] // depth), f"{gemm}: {products}"
        if gemm.operand == "ieee":
            assert function.fresh * 3 == products, f"{gemm}: {function.fresh} of {products} begin a sum"
            assert function.count("FADD") >= 4 * function.fresh, f"{gemm}: {function.opcodes}"


def test_weight_gemms_fetch_and_store_in_vectors(weight_gemms):
    """ldmatrix.trans for 16 bits, words of float32; channels come from memory and go to the stages in 16 bytes."""
    for gemm in weight_gemms:
        function, wide = gemm.function, gemm.operand in ("tf32", "ieee")
        transposed = function.opcodes["LDSM.16.MT88.4"]
        assert function.count("LDSM") == transposed and (transposed == 0) == wide, f"{gemm}: {function.opcodes}"
        assert function.count("STS.128") > 0 and function.count("LDG.E.128") > 0, f"{gemm}: {function.opcodes}"


@pytest.mark.parametrize("opcode", ["LDSM.16.M88.4", "LDGSTS.E.BYPASS.128", "STG.E.128"])
def test_gemms_move_data_in_sixteen_bytes(gemms, opcode):
    """ldmatrix for the operands, cp.async for the filter, and outputs in whole pieces."""
    assert not [str(gemm) for gemm in gemms if not gemm.function.count(opcode)]


def spills(function: Function) -> int:
    return function.count("STL") + function.count("LDL") + function.stack + function.local


def letter(line: str) -> str:
    """What a line about products does: arrive, a product, the end of a group, a wait for all but one or for all."""
    if line.startswith("HGMMA"):
        return "e" if "gsb0" in line else "p"
    depbar = "WARPGROUP.DEPBAR.LE gsb0, 0x"
    return {"WARPGROUP.ARRIVE": "a", f"{depbar}1": "1", f"{depbar}0": "0"}.get(line, "?")


def test_warpgroups_multiply_ahead(warpgroup_gemms):
    """The products of a step are issued together and waited for one step later: of a whole chunk, and of half of one.

    Where the compiler cannot keep sums in their registers it says so (C7510, C7514, C7517, C7519, C7520), which
    fails no build, and adds waits and arrivals of its own, which are counted here.
    """
    for gemm in warpgroup_gemms:
        function, config = gemm.function, gemm.config
        products = {line.split(" ", 1)[0] for line in function.grouped if line.startswith("HGMMA")}
        assert products == {HGMMA[gemm.operand]} and not function.count("HMMA"), gemm
        # Two halves of a warpgroup's 256 pixels, over two planes each; the last ends the group.
        whole, half = ("a" + "p" * (planes - 1) + "e1" for planes in (config["planes"], config["planes"] // 2))
        told = "".join(map(letter, (line for line in function.grouped if not line.startswith("USETMAXREG"))))
        assert told in (whole + half + "0", half + whole + "0"), f"{gemm}: {function.grouped}"


def test_warpgroups_turn_channels(warpgroup_gemms):
    """Pairs of the 128 sums of a thread, four at a time; words of float32 leave one by one."""
    for gemm in warpgroup_gemms:
        expected = 0 if gemm.operand == "tf32" else 128 // 2 // 4
        assert gemm.function.opcodes["STSM.16.MT88.4"] == gemm.function.count("STSM") == expected, gemm


def test_warpgroups_share_out_registers(warpgroup_gemms):
    """Those who load give registers away to those who multiply; bulk copies fetch the filter, tensor copies boxes."""
    text = (ROOT / "cuda" / "config" / "tile_config.hpp").read_text()
    of_boxes, gathering = map(int, re.search(r"in_lines\(way\) \? (\d+) : (\d+);", text).groups())
    for gemm in warpgroup_gemms:
        function, boxes = gemm.function, way_in(gemm)
        shares = [line for line in function.grouped if line.startswith("USETMAXREG")]
        multiplying = 32 * gemm.config["warps_m"] * gemm.config["warps_n"]
        # Two warps work on boxes, or six where a thread block has a multiprocessor to itself, and four more store.
        beside = multiplying if not boxes else 384 if gemm.config["blocks"] == 1 else 128
        loaders = of_boxes if boxes else gathering
        launched = REGISTERS // gemm.config["blocks"] // (multiplying + beside) // 8 * 8
        consumers = (launched * (multiplying + beside) - beside * loaders) // multiplying // 8 * 8
        assert len(shares) == 2 and any(re.search(rf"DEALLOC\S* {loaders:#x}$", line) for line in shares), shares
        assert any(re.search(rf"ALLOC\S* UP\d, {consumers:#x}$", line) for line in shares), shares
        assert function.registers == launched, f"{gemm}: {function.registers} registers"
        assert function.count("UBLKCP") == 1, f"{gemm}: {function.opcodes}"
        assert function.count("UTMALDG") == boxes, f"{gemm}: {function.opcodes}"
        assert not function.count("LDGSTS") and not function.count("LDSM"), f"{gemm}: {function.opcodes}"


def test_outer_products_are_ahead(outer_gemms):
    """Every product of a box is written out, a group of its own; who fetches a fragment waits for the fourth before."""
    for gemm in outer_gemms:
        config, function = gemm.config, gemm.function
        said = [line.split(" ", 1) for line in function.grouped if not line.startswith("USETMAXREG")]
        products = config["row_tiles"] * config["steps"]
        name = HGMMA[gemm.operand].replace("64x128x", f"64x{config['channels']}x")
        assert [line[0] for line in said].count(name) == function.count("HGMMA") == products, f"{gemm}: {said}"
        assert all("gsb0" in line[1] for line in said if line[0] == name), f"{gemm}: {said}"
        waits = [line[1] for line in said if line[0] == "WARPGROUP.DEPBAR.LE"]
        ahead, last = waits.count("gsb0, 0x3"), waits.count("gsb0, 0x0")
        assert ahead == products and ahead + last == len(waits) and 0 < last <= config["row_tiles"], f"{gemm}: {waits}"
        assert function.count("WARPGROUP.ARRIVE") == products, f"{gemm}: {said}"


def test_outer_boxes_are_copied(outer_gemms):
    """In 16 bytes past the registers; fragments by ldmatrix where channels of 16 bits lie side by side."""
    for gemm in outer_gemms:
        function, config = gemm.function, gemm.config
        assert function.count("LDGSTS.E.BYPASS.128") > 0, f"{gemm}: {function.opcodes}"
        transposes = innermost(gemm) == 1 and gemm.operand != "tf32"
        expected = config["row_tiles"] * config["steps"] if transposes else 0
        assert function.opcodes["LDSM.16.MT88.4"] == function.count("LDSM") == expected, f"{gemm}: {function.opcodes}"


def test_outer_registers_are_shared_out(outer_gemms):
    """Those who load give registers away to those who multiply, and a multiprocessor has them all."""
    for gemm in outer_gemms:
        config, function = gemm.config, gemm.function
        shares = [line for line in function.grouped if line.startswith("USETMAXREG")]
        assert len(shares) == 2, shares
        loader, consumer = (
            int(share.split()[-1], 16) for share in sorted(shares, key=lambda line: "DEALLOC" not in line)
        )
        threads = 32 * config["loading"], 128 * config["groups"]
        launched = function.registers * sum(threads)  # who asks for more waits forever
        assert launched <= REGISTERS, gemm
        assert launched - 8 * sum(threads) < loader * threads[0] + consumer * threads[1] <= launched, shares
        assert loader < function.registers < consumer, gemm


def test_warpgroups_are_hoppers(every_warpgroup_gemm, every_outer_gemm):
    """Elsewhere the kernel is a trap, for it is never launched."""
    others = [gemm for gemm in (*every_warpgroup_gemm, *every_outer_gemm) if gemm.function.architecture != HOPPER]
    assert others
    for gemm in others:
        does = {opcode.split(".")[0] for opcode in gemm.function.opcodes} - {"NOP", "BRA", "EXIT"}
        assert "BPT" in does and len(does) <= 4 and not gemm.function.grouped, f"{gemm}: {gemm.function.opcodes}"


def test_gemms_do_not_spill(gemms, every_warpgroup_gemm, weight_gemms, every_outer_gemm):
    made = [*gemms, *every_warpgroup_gemm, *weight_gemms, *every_outer_gemm]
    spilled = [f"{gemm}: {gemm.function.stack} bytes of stack" for gemm in made if spills(gemm.function)]
    assert not spilled, "\n".join(spilled)


def test_gemms_leave_room_for_their_blocks(gemms, warpgroup_gemms, weight_gemms):
    """Registers times threads times the blocks that a multiprocessor is meant to hold."""
    for gemm in (*gemms, *warpgroup_gemms, *weight_gemms):
        config = gemm.config
        threads = 32 * config["warps_m"] * config["warps_n"]
        if gemm in warpgroup_gemms:  # as many load, or a warpgroup asks for copies
            threads += 128 if way_in(gemm) else threads
        granted = -(-gemm.function.registers // 8) * 8
        assert 0 < granted * threads * gemm.blocks <= REGISTERS, f"{gemm}: {gemm.function.registers} registers"
        assert gemm.function.registers <= 255


def direct(functions: list[Function], family: str) -> list[Function]:
    return [function for function in functions if re.search(rf"device_kernelI.*\d{family}I", function.name)]


# Kernels per dtype, of which there are four: lanes or vectors of channels; pitches; pitches and tap sets; operators.
DIRECT = {
    "DepthwiseRows": 1, "DepthwiseChannels": 2, "DepthwiseGradInput": 3, "DepthwiseGradWeight": 9, "Simt": 3,
    "SumPartials": 1,
}  # fmt: skip


@pytest.mark.parametrize("family", DIRECT)
def test_direct_kernels_do_not_spill(functions, family):
    found = direct(functions, family)
    assert Counter(function.architecture for function in found) == dict.fromkeys(architectures(), 4 * DIRECT[family])
    spilled = [f"{function}: {function.stack} bytes of stack" for function in found if spills(function)]
    assert not spilled, "\n".join(spilled)


def test_depthwise_channels_in_vectors_leave_whole(functions):
    """One channel per thread, or 16 bytes of channels: those load and store nothing smaller of the tensors."""
    found = direct(functions, "DepthwiseChannels")
    vectors = [function for function in found if not re.search(r"DepthwiseChannelsI\w*?Li1EE", function.name)]
    assert len(vectors) == len(found) // 2
    for function in vectors:
        assert function.count("STG.E.128") == function.count("STG") > 0, f"{function}: {function.opcodes}"
        assert function.count("LDG.E.128") > 0, f"{function}: {function.opcodes}"
