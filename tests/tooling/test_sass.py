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

    def __str__(self) -> str:
        return f"{self.name} for {self.architecture}"

    def count(self, start: str) -> int:
        """Instructions with this beginning."""
        return sum(count for opcode, count in self.opcodes.items() if opcode.startswith(start))


@dataclass
class Gemm:
    """An instance of the implicit GEMM: the numbers of its line in configs.def, and its operand."""

    function: Function
    config: dict[str, int]
    operand: str

    @property
    def blocks(self) -> int:
        """Thread blocks that a multiprocessor has to have registers for; the rule is TileConfig::blocks_of."""
        blocks = self.config["blocks"]
        return 2 if self.operand == "ieee" and blocks == 3 else blocks

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


INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")


def disassemble(cubin: Path, architecture: str) -> list[Function]:
    functions: list[Function] = []
    for line in lines(tool("nvdisasm"), "-c", "-ndf", cubin):
        if line.startswith(".text."):
            functions.append(Function(line.strip().removeprefix(".text.").removesuffix(":"), architecture))
        elif instruction := INSTRUCTION.match(line):
            functions[-1].opcodes[instruction[1]] += 1
            functions[-1].fresh += instruction[1].startswith("HMMA") and ", RZ" in instruction[2]
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


@lru_cache(maxsize=1)
def fields() -> tuple[str, ...]:
    """Fields of TileConfig, in order."""
    text = (ROOT / "cuda" / "config" / "tile_config.hpp").read_text()
    return tuple(re.findall(r"^  (?:int|bool) (\w+)(?: = \w+)?;", text.split("struct TileConfig {")[1], re.MULTILINE))


@pytest.fixture(scope="session")
def gemms(functions) -> list[Gemm]:
    """The instances of the implicit GEMM, by their mangled template arguments."""
    made = []
    for function in functions:
        if arguments := re.search(r"implicit_gemm.*TileConfigE((?:L[ib]\d+E)+)E+L.*?OperandE(\d)E", function.name):
            numbers = [int(number) for number in re.findall(r"L[ib](\d+)E", arguments[1])]
            numbers += [0] * (len(fields()) - len(numbers))  # trailing zeros are not mangled
            made.append(Gemm(function, dict(zip(fields(), numbers, strict=True)), OPERANDS[int(arguments[2])]))
    assert made, f"no instance of implicit_gemm among {len(functions)} kernels"
    return made


def architectures() -> set[str]:
    built = _C.build_info()["cuda_architectures"].split(", ")
    return {f"sm_{name.removesuffix('-real')}" for name in built if name.endswith("-real")}


def test_every_configuration_is_there(gemms):
    assert architectures() >= {"sm_80", "sm_90a"}
    found = Counter((gemm.function.architecture, gemm.operand) for gemm in gemms)
    assert found == {(name, operand): len(_C.cuda_configs()) for name in architectures() for operand in OPERANDS}
    different = Counter((gemm.function.architecture, gemm.operand, *gemm.config.values()) for gemm in gemms)
    assert set(different.values()) == {1}


def test_gemms_multiply_on_tensor_cores(gemms):
    for gemm in gemms:
        function, config = gemm.function, gemm.config
        products = function.opcodes[HMMA[gemm.operand]]
        assert products == function.count("HMMA") > 0, f"{gemm}: {function.opcodes}"
        warp_tiles = config["rows"] // config["warps_m"] // 16 * (config["pixels"] // config["warps_n"] // 8)
        copies = 3 if gemm.operand == "ieee" else 1
        assert products % (warp_tiles * copies) == 0, f"{gemm}: {products} products of {warp_tiles} tiles"
        if gemm.operand == "ieee":
            # Low times high, high times low, high times high: the first begins a sum, which is then added in float32.
            assert function.fresh * 3 == products, f"{gemm}: {function.fresh} of {products} begin a sum"
            assert function.count("FADD") >= 4 * function.fresh, f"{gemm}: {function.opcodes}"


@pytest.mark.parametrize("opcode", ["LDSM.16.M88.4", "LDGSTS.E.BYPASS.128", "STG.E.128"])
def test_gemms_move_data_in_sixteen_bytes(gemms, opcode):
    """ldmatrix for the operands, cp.async for the filter, and outputs in whole pieces."""
    assert not [str(gemm) for gemm in gemms if not gemm.function.count(opcode)]


def spills(function: Function) -> int:
    return function.count("STL") + function.count("LDL") + function.stack + function.local


def test_gemms_do_not_spill(gemms):
    spilled = [f"{gemm}: {gemm.function.stack} bytes of stack" for gemm in gemms if spills(gemm.function)]
    assert not spilled, "\n".join(spilled)


def test_gemms_leave_room_for_their_blocks(gemms):
    """Registers times threads times the blocks that a multiprocessor is meant to hold."""
    for gemm in gemms:
        config = gemm.config
        threads = 32 * config["warps_m"] * config["warps_n"]
        granted = -(-gemm.function.registers // 8) * 8
        assert 0 < granted * threads * gemm.blocks <= REGISTERS, f"{gemm}: {gemm.function.registers} registers"
        assert gemm.function.registers <= 255


def direct(functions: list[Function], family: str) -> list[Function]:
    return [function for function in functions if re.search(rf"device_kernelI.*\d{family}", function.name)]


@pytest.mark.parametrize("family", ["DepthwiseRows", "DepthwiseChannels", "Simt"])
def test_direct_kernels_do_not_spill(functions, family):
    found = direct(functions, family)
    # float32, float64, bfloat16 and float16.
    assert len(found) >= 4 * len(architectures())
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
