"""Reading a disassembly: instructions, basic blocks, and the loop in which a kernel spends its time."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LABEL = re.compile(r"\s*(\.L_x_\w+):")
# /*0a30*/  @!P0 HGMMA.64x128x16.F32.BF16 R24, R132, gdesc[UR8], R24 ;
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
TARGET = re.compile(r"\.L_x_\w+")
PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA")  # matrix products of mma, wgmma and tcgen05


@dataclass(frozen=True)
class Instruction:
    """predicate: the register that decides whether it is executed, "" for always."""

    name: str
    operands: str
    predicate: str

    @property
    def kind(self) -> str:
        """The name without what follows the first point."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Block:
    """Instructions that are executed one after the other; `following` are the blocks that may come next."""

    instructions: tuple[Instruction, ...]
    following: tuple[int, ...]


def parse(code: str) -> list[Block]:
    """The basic blocks of a kernel in nvdisasm's output, in the order of their addresses; the first is the entry."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif one := INSTRUCTION.search(line):
            found.append(Instruction(one[2], one[3].strip(), one[1] or ""))
    ends = {i + 1 for i, one in enumerate(found) if one.kind in ("BRA", "EXIT", "RET")}
    starts = sorted({0, *labels.values(), *ends} - {len(found)})
    numbers = {start: i for i, start in enumerate(starts)}
    blocks = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(found)], strict=True)):
        last = found[end - 1]
        following = []
        if last.kind == "BRA" and (target := TARGET.search(last.operands)):
            following.append(numbers[labels[target[0]]])
        # A branch may also be under a condition by its first operand: BRA.DIV UR4, or BRA !UP0.
        always = not last.predicate and not re.match(r"!?U?[PR]\d", last.operands) and ".DIV" not in last.name
        if not (last.kind in ("BRA", "EXIT", "RET") and always) and number + 1 < len(starts):
            following.append(number + 1)
        blocks.append(Block(tuple(found[start:end]), tuple(following)))
    return blocks


def dominators(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """For each block that can be reached, those that are on every way to it."""
    reached, waiting = {0}, [0]
    while waiting:
        for number in blocks[waiting.pop()].following:
            if number not in reached:
                reached.add(number)
                waiting.append(number)
    before: dict[int, list[int]] = {number: [] for number in reached}
    for number in reached:
        for following in blocks[number].following:
            before[following].append(number)
    found = {number: set(reached) for number in reached}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for number in sorted(reached - {0}):
            now = set.intersection(*(found[each] for each in before[number])) | {number}
            changed |= now != found[number]
            found[number] = now
    return found


def loops(blocks: Sequence[Block]) -> list[list[Instruction]]:
    """The natural loops: all that is executed between a block and the branch back to it.

    What lies behind that branch is left out: the second and later attempts of waits that did not succeed at once.
    """
    dominated_by = dominators(blocks)
    before: dict[int, list[int]] = {number: [] for number in dominated_by}
    for number in dominated_by:
        for following in blocks[number].following:
            before[following].append(number)
    found = []
    for last in dominated_by:
        for head in set(blocks[last].following) & dominated_by[last]:
            inside, waiting = {head}, [last]
            while waiting:
                number = waiting.pop()
                if number not in inside:
                    inside.add(number)
                    waiting += before[number]
            ordered = sorted(number for number in inside if number <= last)
            found.append([one for number in ordered for one in blocks[number].instructions])
    return found


def count_products(instructions: Sequence[Instruction]) -> int:
    return sum(one.kind in PRODUCTS for one in instructions)


def main_loop(code: str) -> list[Instruction]:
    """The innermost loop with the most matrix products; empty where there is none."""
    found = sorted((loop for loop in loops(parse(code)) if count_products(loop)), key=len)
    innermost: list[list[Instruction]] = []
    for loop in found:
        inside = {id(one) for one in loop}
        if not any(inside.issuperset(map(id, smaller)) for smaller in innermost):
            innermost.append(loop)
    return max(innermost, key=count_products, default=[])


def product_flops(instructions: Sequence[Instruction], warps: int) -> int:
    """FLOPs of the matrix products of a program of so many warps. Of tcgen05 none: its sizes are not in the code."""
    total = 0
    for one, count in Counter(one.name for one in instructions).items():
        if warp := re.match(r"HMMA\.(\d\d)(\d)(\d\d?)\.", one):  # m, n and k of a warp
            total += 2 * int(warp[1]) * int(warp[2]) * int(warp[3]) * count * warps
        elif group := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", one):  # of four warps
            total += 2 * int(group[1]) * int(group[2]) * int(group[3]) * count * (warps // 4)
    return total
