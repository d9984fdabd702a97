"""Redirects: ids that stand for other ids, perhaps through further redirects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pipeline.schema import UserError

_FORM = "give lines of: old id <tab> new id"
_CYCLES_NAMED = 20


def read_redirects(path: str) -> Iterator[tuple[str, str]]:
    """Returns (old id, new id) for each line of the file at `path`; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is not of this form.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                ids = line.rstrip("\r\n").split("\t")
                if not line.strip():
                    continue
                if len(ids) != 2 or not all(0 < len(one.encode()) <= 500 and one.strip() == one for one in ids):
                    raise UserError(f"{path}, line {number}: {line.rstrip()[:40]!r} are not two ids; {_FORM}")
                yield ids[0], ids[1]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); {_FORM}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give --redirects an existing file") from None


def follow(redirects: Mapping[str, str], is_entity: Callable[[str], bool]) -> tuple[dict[str, str], list[str]]:
    """Returns old id -> id of an entity, through chains, and the cycles, such as "Q1 -> Q2 -> Q1", at most 20.

    Redirects from an entity, into a cycle and to nothing are left out: dumps lack targets that have no label.
    """
    found: dict[str, str] = {}
    cycles: dict[frozenset[str], str] = {}
    for old in redirects:
        if is_entity(old):
            continue
        chain = [old]
        while (target := redirects[chain[-1]]) in redirects and target not in chain and not is_entity(target):
            chain.append(target)
        if target in chain:
            cycle = chain[chain.index(target) :]
            if len(cycles) < _CYCLES_NAMED:
                cycles.setdefault(frozenset(cycle), " -> ".join([*cycle, target]))
        elif is_entity(target):
            found[old] = target
    return found, list(cycles.values())
