"""The 17 transposed convolutions of KernelBench's level 1, by their numbers there. None of them has a bias.

11 have stride 1; no tap reaches half of the outputs or more in 75, 77, 79 and 81. Inputs are uniform in [0, 1) there.
"""

from __future__ import annotations

from dataclasses import replace

from convt.problem import Ints, Problem


def _problem(
    batch: int,
    channels: tuple[int, int],
    input: Ints,
    filter: Ints,
    *,
    stride: Ints | None = None,
    padding: Ints | None = None,
    output_padding: Ints | None = None,
    dilation: Ints | None = None,
    groups: int = 1,
) -> Problem:
    ones, zeros = (1,) * len(input), (0,) * len(input)
    return Problem(
        batch=batch,
        in_channels=channels[0],
        out_channels=channels[1],
        groups=groups,
        input=input,
        filter=filter,
        stride=stride or ones,
        padding=padding or zeros,
        output_padding=output_padding or zeros,
        dilation=dilation or ones,
    )


PROBLEMS: dict[str, Problem] = {
    "57": _problem(8, (64, 64), (1024, 1024), (3, 3)),
    "58": _problem(16, (32, 16), (16, 32, 64), (3, 5, 7)),
    "61": _problem(8, (48, 48), (64, 64, 64), (3, 3, 3)),
    "64": _problem(64, (128, 128), (65536,), (3,)),
    "65": _problem(8, (64, 64), (512, 512), (3, 7)),
    "68": _problem(16, (32, 64), (64, 64, 64), (3, 5, 5)),
    "69": _problem(64, (64, 128), (128, 256), (3, 5)),
    "70": _problem(8, (48, 24), (96, 96, 96), (3, 3, 3)),
    "71": _problem(8, (32, 32), (512, 1024), (3, 3)),
    "72": _problem(
        8, (32, 32), (12, 24, 48), (3, 5, 7), stride=(2, 2, 2), padding=(1, 2, 3), output_padding=(1, 1, 1), groups=4
    ),
    "73": _problem(4, (32, 32), (32, 64, 128), (3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)),
    "74": _problem(32, (32, 64), (131072,), (5,), dilation=(3,)),
    "75": _problem(16, (32, 64), (128, 256), (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=4),
    "77": _problem(
        16, (32, 64), (16, 32, 32), (3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), dilation=(2, 2, 2)
    ),
    "78": _problem(8, (32, 32), (512, 1024), (3, 7), padding=(1, 3)),
    "79": _problem(16, (32, 64), (131072,), (3,), stride=(2,), padding=(1,), dilation=(2,)),
    "81": _problem(16, (32, 64), (64, 128), (3, 3), stride=(5, 5), padding=(1, 1), dilation=(2, 2)),
}  # fmt: skip

# The longest axis of a shrunken input, by rank: odd, so that rows are not aligned and tiles have a rest.
_SHRUNKEN = {1: 301, 2: 19, 3: 7}


def shrunk(problem: Problem) -> Problem:
    """The same layer on two small images at most: everything that is not a size stays."""
    longest = _SHRUNKEN[problem.rank]
    return replace(problem, batch=min(problem.batch, 2), input=tuple(min(i, longest) for i in problem.input))
