"""Judges after the fact: published = delivered + counted drops + reported gaps, once, in order,
unaltered.

Owns the rules of docs/contract.md that can be checked from outside. Pure: it reads the entries of
ledgers and gives a verdict; it starts nothing and waits for nothing. It is not told which process
was killed: a bus without an `ended` entry says so, and then

- what such a *publisher* sent last may be missing in its own ledger (deliveries above its last seq
  are still held to order and to be no duplicates), and may not have left it: what a subscription
  has of it must have no hole, and what is beyond its last is counted as `tail`;
- what such a *subscriber* handled last may be missing as well, so the same holds of it.

A gap with the reason UNKNOWN says that its source has left, and that it is unknown whether
anything in it matched. It is no loss of its own: it may be empty, and what its source still has may
be handed over after it. But what is missing in it is told of, and so is up to the `last` of an
`aiobus.peer_left`: what of that was neither handed over nor is in a gap is a silent loss.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from aiobus.sequence import UNKNOWN
from faults.ledger import Entry
from faults.testimony import Published, Seen, Source, Strand

__all__ = ["Verdict", "judge"]

EXAMPLES = 20


@dataclass
class Verdict:
    """What the ledgers of one round say."""

    published: int = 0
    owed: int = 0
    """Events times subscriptions that were to have them."""
    delivered: int = 0
    dropped: int = 0
    """Counted by a policy that the subscription chose."""
    gaps: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of those gaps: a scenario knows which there may be."""
    lost: int = 0
    """Owed, and in a reported gap."""
    tail: int = 0
    """Last words of the killed, or to the killed, of which nothing can be known."""
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def accuse(self, kind: str, text: str, count: int = 1) -> None:
        """Something that must not be."""
        self.violations[kind] += count
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{kind}: {text}")

    def allow(self, reasons: Collection[str]) -> None:
        """Of gaps. A bus that reports what it could have had keeps no promise by that."""
        for reason in self.reasons.keys() - reasons - {UNKNOWN}:
            self.accuse("needless gap", reason, self.reasons[reason])

    def check(self) -> None:
        """Raise AssertionError with the first violations, if there are any."""
        assert not self.violations, f"{dict(self.violations)}\n" + "\n".join(self.examples)


def judge(ledgers: Iterable[Iterable[Entry]]) -> Verdict:
    """Weigh the ledgers of all processes of a round against each other."""
    verdict = Verdict()
    kept = [list(entries) for entries in ledgers]
    sources: dict[Source, Published] = {}
    for entries in kept:
        _collect(entries, sources, verdict)
    for entries in kept:
        for seen in _witnesses(entries, sources, verdict):
            _weigh(seen, sources, verdict)
    verdict.published = sum(len(each.seqs) for each in sources.values())
    accounted = verdict.delivered + verdict.dropped + verdict.lost + verdict.tail
    if not verdict.violations and verdict.owed != accounted:
        verdict.accuse("sum", f"{verdict.owed} owed, {accounted} accounted for")
    return verdict


def _collect(entries: list[Entry], sources: dict[Source, Published], verdict: Verdict) -> None:
    bursts: list[Entry] = []
    for kind, *fields in entries:
        match kind:
            case "started":
                name, epoch, before = fields
                sources[name, epoch] = Published(before)
            case "published":
                bursts.append(fields)
            case "ended":
                name, epoch, seq = fields
                sources[name, epoch].end = seq
    # A `publish` that waits is written down when it is done waiting: later ones may be before it.
    for name, epoch, begun, rows in sorted(bursts, key=lambda burst: burst[3][0][0]):
        source = sources[name, epoch]
        if rows[0][0] <= source.last or any(one[0] >= other[0] for one, other in pairwise(rows)):
            verdict.accuse("disordered seqs", f"{name}@{epoch} at {rows[0][0]}")
        source.add(begun, rows)


def _witnesses(
    entries: list[Entry], sources: dict[Source, Published], verdict: Verdict
) -> list[Seen]:
    """The subscriptions of one process, and what each saw."""
    found: dict[str, Seen] = {}
    lasts: dict[Source, int] = {}
    for kind, *fields in entries:
        match kind:
            case "subscribes":
                found[fields[0]] = Seen(*fields)
            case "subscribed":
                found[fields[0]].time, found[fields[0]].unconfirmed = fields[1:]
            case "handled":
                label, source, epoch, rows = fields
                seen = found[label]
                published = _known((source, epoch), sources, label, verdict)
                strand = seen.strands.setdefault((source, epoch), Strand())
                for row in rows:
                    _look(seen, (source, epoch), strand, published, row, verdict)
            case "gap":
                label, source, epoch, after, upto, reason = fields
                _known((source, epoch), sources, label, verdict)
                strand = found[label].strands.setdefault((source, epoch), Strand())
                kept = strand.doubts if reason == UNKNOWN else strand.gaps
                kept.append((after, upto, len(strand.seqs)))
                verdict.reasons[reason] += 1
            case "left":
                source, epoch, last = fields
                lasts[source, epoch] = max(last, lasts.get((source, epoch), 0))
            case "complete":
                label, counted = fields
                found[label].counted = counted
    for seen in found.values():
        seen.lasts = lasts
    return list(found.values())


def _known(
    source: Source, sources: dict[Source, Published], label: str, verdict: Verdict
) -> Published:
    """What a source published. It wrote down that it had started before it published anything."""
    if source not in sources:
        verdict.accuse("phantom", f"{source[0]}@{source[1]} never started, at {label}")
        sources[source] = Published(0.0)
    return sources[source]


def _look(
    seen: Seen, source: Source, strand: Strand, published: Published, row: Entry, verdict: Verdict
) -> None:
    """One delivery: in order, once, asked for, and as it was published."""
    seq, type, key, checksum = row
    where = f"{source[0]}.{seq} at {seen.label}"
    # Under `latest` order is promised per key, since a newer event takes an older one's place.
    name = (type, key) if seen.overflow == "latest" else ("", "")
    newest = strand.newest.get(name, 0)
    if seq <= newest:
        is_again = seq in strand.seqs
        verdict.accuse("duplicate" if is_again else "reorder", f"{where} after {newest}")
        if is_again:
            return
    strand.newest[name] = max(newest, seq)
    strand.seqs.append(seq)
    if not seen.wants(type, key):
        verdict.accuse("unasked", f"{where} of {type}/{key}")
    index = published.index(seq, strand.guess)
    if index is None:
        # A killed publisher may have sent more than it could write down.
        if published.is_whole or seq <= published.last:
            verdict.accuse("phantom", f"{where} was never published")
        return
    strand.guess = index + 1
    names = published.names[published.subjects[index]]
    if names != (type, key) or published.checksums[index] != checksum:
        verdict.accuse("altered", f"{where} is not what was published")


def _weigh(seen: Seen, sources: dict[Source, Published], verdict: Verdict) -> None:
    """What is missing in one subscription, and whether that was said."""
    missing = 0
    for source, published in sources.items():
        strand = seen.strands.get(source, Strand())
        verdict.gaps += len(strand.gaps) + len(strand.doubts)
        _check_gaps(seen, source, strand, published, verdict)
        _check_last(seen, source, strand, published, verdict)
        missing += _count(seen, source, strand, published, verdict)
    if not seen.may_drop:
        return
    if seen.counted is None:
        verdict.tail += missing
    elif missing != seen.counted:
        text = f"{seen.label} counted {seen.counted} drops, and {missing} are missing"
        verdict.accuse("miscount", text)
    else:
        verdict.dropped += missing


def _count(
    seen: Seen, source: Source, strand: Strand, published: Published, verdict: Verdict
) -> int:
    """Add up what was owed of one source; return how much is missing that only a policy explains.

    What is missing without one is a silent loss, unless it cannot be known of: beyond the last that
    is known of a source or a subscriber that was killed.
    """
    begin = _begin(seen, source, strand, published)
    delivered = set(strand.seqs)
    told = strand.gaps + strand.doubts
    last = 0 if seen.counted is None else seen.lasts.get(source, 0)
    reach = max([last, *strand.seqs, *(upto for _, upto, _ in told)])
    is_final = published.is_whole and seen.counted is not None
    missing = 0
    for seq, _ in published.asked_for(seen):
        if begin is None or seq < begin:
            continue
        verdict.owed += 1
        if seq in delivered:
            verdict.delivered += 1
        elif any(after < seq <= upto for after, upto, _ in told):
            verdict.lost += 1
        elif seq > reach and not is_final:
            verdict.tail += 1
        elif seen.may_drop:
            missing += 1
        else:
            verdict.accuse("silent loss", f"{source[0]}.{seq} at {seen.label}")
    return missing


def _begin(seen: Seen, source: Source, strand: Strand, published: Published) -> int | None:
    """The first seq that is owed; None when nothing is.

    All of a source that started after the subscription was live; of an older one that confirmed it
    what it published from then on; and in any case whatever follows the first that was heard of.
    """
    if published.started > seen.time:
        return 0
    time = min(seen.time, seen.since)
    found = [strand.gaps[0][0] + 1] if strand.gaps else []
    if strand.seqs and not seen.begins_with_last:
        found.append(min(strand.seqs))
    if source[0] not in seen.unconfirmed:
        first = published.first_after(time)
        found += [] if first is None else [first]
    return min(found, default=None)


def _check_last(
    seen: Seen, source: Source, strand: Strand, published: Published, verdict: Verdict
) -> None:
    """Who asked for the newest of each (type, key) has that of when it asked, or one that came
    before it was told, and all that followed.
    """
    is_judged = seen.begins_with_last and not seen.may_drop and seen.counted is not None
    is_older = published.is_whole and published.started < seen.asked_at
    if (
        not (is_judged and is_older)
        or strand.gaps
        or strand.doubts
        or source[0] in seen.unconfirmed
    ):
        return
    delivered, before = set(strand.seqs), published.last_before(seen.asked_at)
    live = published.first_after(seen.time) or published.last + 1
    for seqs in published.by_name(seen):
        newest = max((seq for seq in seqs if seq <= before), default=0)
        first = next((seq for seq in seqs if seq in delivered), None)
        if newest and (first is None or not newest <= first < live):
            verdict.accuse("old last", f"{first} in place of {source[0]}.{newest} at {seen.label}")
        for seq in seqs:
            if first is not None and seq > first and seq not in delivered:
                verdict.accuse("silent loss", f"{source[0]}.{seq} of a key, at {seen.label}")


def _check_gaps(
    seen: Seen, source: Source, strand: Strand, published: Published, verdict: Verdict
) -> None:
    """A gap names what is lost, exactly: nothing that came before it, nothing twice, nothing that
    was never published, and nothing that is handed over after it unless of another type.
    """
    place = 0
    for after, upto, count in strand.gaps:
        where = f"({after}, {upto}] of {source[0]} at {seen.label}"
        before = max(strand.seqs[:count], default=0)
        if not (after < upto and after >= place):
            verdict.accuse("inexact gap", f"{where}, a gap up to {place} was reported before")
        if after < before and seen.overflow != "latest":
            verdict.accuse("false gap", f"{where}, and {before} was handed over before it")
        if published.end is not None and upto > published.end:
            verdict.accuse("inexact gap", f"{where}, {published.end} was its last")
        if published.is_whole and not any(
            after < seq <= upto for seq, _ in published.asked_for(seen)
        ):
            verdict.accuse("false gap", f"{where}, and nothing in it was asked for")
        _check_after_gap(seen, where, (after, upto), strand.seqs[count:], published, verdict)
        place = upto
    for after, upto, count in strand.doubts:
        where = f"({after}, {upto}] of {source[0]} at {seen.label}"
        if published.end is not None and upto > published.end:
            verdict.accuse("inexact gap", f"{where}, {published.end} was its last")
        if after < max(strand.seqs[:count], default=0) and seen.overflow != "latest":
            verdict.accuse("false gap", f"{where}, and more was handed over before it")


def _check_after_gap(
    seen: Seen,
    where: str,
    gap: tuple[int, int],
    later: "array[int]",
    published: Published,
    verdict: Verdict,
) -> None:
    """History forgets the oldest of a type first, so of each type only the newest of a gap can be
    handed over after it, and the very last is always gone. Of a single type, all is.
    """
    after, upto = gap
    inside = {seq for seq in later if after < seq <= upto}
    if not inside:
        return
    if upto in inside or (len(seen.types) == 1 and seen.types != ["*"]):
        verdict.accuse("false gap", f"{where}, and {max(inside)} was handed over after it")
        return
    begun: set[str] = set()
    for seq, type in published.asked_for(seen):
        if not after < seq <= upto:
            continue
        if seq in inside:
            begun.add(type)
        elif type in begun:
            verdict.accuse("false gap", f"{where}, {seq} is gone, and an older {type} is not")
