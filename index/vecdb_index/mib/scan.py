"""All codes of a segment, or of the blocks with allowed rows, against the tables of some queries: kernels.

For each block of 32 rows, sixteen dimensions at a time: four bits of each row are looked up in a query's table by one byte
shuffle, and their sums are added as 16-bit numbers, of the even bytes and of the odd ones (Andre, Kermarrec and Le Scouarnec,
VLDB 2015). Queries that go together share the loads and the splitting of bytes into halves; one alone loads its table for two
blocks at once where codes come from a cache, and where it waits for memory asks for them a page ahead. Estimates are compared
with the least that counts as soon as a block is done, and only rows that reach it go to the query's *list*: entries as
`kernels.select` has them. A list that is full is cut to the best; what is kept in the end (`shorten`) are those of the `most`
best of all rows, by (estimate, row), that are among the `near` best or estimated less than `reach` below the last of these,
whatever the order of the work. Blocks without an allowed row are not read.

Where there is no AVX2, a plain kernel finds the same sums. A `Plan` says how the work is cut up, which changes no answer. All
are safe in any thread; lists are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..codec.bits import BLOCK, LEVELS
from ..kernels.bitmap import lowest
from ..kernels.compile import intrinsic, kernel
from ..kernels.distances import fetch, fma, key_of, load, pair, pointer, prefetch, read_only
from ..kernels.product import AVX2
from ..kernels.select import keep_least, key_in, offer, packed, row_in, settle

TOGETHER = 4  # queries that share what is done for a block, at most
_BYTES_TOGETHER = 255 // LEVELS // 2  # of a code, whose lookups are added as bytes
_SLACK = 256  # entries beyond what is kept of a list before it is cut again, at least
_COMING = 6  # rows that are on their way while one is looked at
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _SHORTS, _HALF = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16), ir.VectorType(_I8, 16)


class Bits(NamedTuple):
    """The codes of n rows as kernels take them. See `codec.bits`."""

    codes: npt.NDArray[np.uint8]
    factors: npt.NDArray[np.float32]
    n: int


class Plan(NamedTuple):
    """How a scan goes. together: queries that share what is done for a block, 1, 2 or 4. tile: bytes of codes that stay in a
    core's own cache while all queries pass over them. ahead: how many bytes before they are needed codes of a single query are
    asked for; 0 for not at all, and then two blocks are scanned at once.
    """

    together: int
    tile: int
    ahead: int


class Lists(NamedTuple):
    """The lists of m queries, as kernels take them; see the module.

    entries: (m, room) uint64, with room for more than `most`. sizes: (m,) int64. least: (m,) float32, what an estimate must be
    above. due: (m,) int64, the size at which a list is cut. reach: (m,) float32.
    """

    entries: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    least: npt.NDArray[np.float32]
    due: npt.NDArray[np.int64]
    reach: npt.NDArray[np.float32]
    most: int
    near: int

    @staticmethod
    def of(m: int, most: int, near: int | None = None, reach: npt.NDArray[np.float32] | None = None) -> Lists:
        """Empty ones. Without `reach` the best `most` are kept, however far they lie."""
        near = most if near is None else near
        room = most + max(_SLACK, near)
        sizes, least, due = np.zeros(m, np.int64), filled(m, -np.inf), np.empty(m, np.int64)
        due.fill(near + max(_SLACK, near))
        far = read_only(filled(m, np.inf) if reach is None else reach)
        return Lists(np.empty((m, room), np.uint64), sizes, least, due, far, most, near)

    @staticmethod
    def together(parts: Sequence[Lists]) -> Lists:
        """What was offered to each of several, of the same queries. There is no room for more."""
        if len(parts) == 1:
            return parts[0]
        first, sizes = parts[0], np.sum([part.sizes for part in parts], axis=0)
        entries = np.empty((len(sizes), int(sizes.max(initial=0))), np.uint64)
        for q in range(len(sizes)):
            np.concatenate([part.entries[q, : part.sizes[q]] for part in parts], out=entries[q, : sizes[q]])
        least = np.max([part.least for part in parts], axis=0)
        return first._replace(entries=entries, sizes=sizes, least=least, due=sizes.copy())

    def as_they_are(self) -> Lists:
        """Lists from which nothing more is cut."""
        return self._replace(reach=read_only(filled(len(self.sizes), np.inf)), most=self.entries.shape[1])


def filled(m: int, value: float) -> npt.NDArray[np.float32]:
    """(m,); as np.full, which takes five times as long: a tenth of a query's time is what surrounds it."""
    found = np.empty(m, np.float32)
    found.fill(value)
    return found


def _sums_of(together: int, blocks: int = 1) -> Any:
    """The intrinsic that adds up the lookups of a block for so many queries, or of several blocks for one."""

    @intrinsic
    def sums(typing: Any, codes: Any, block: Any, tables: Any, q: Any, ahead: Any, out: Any) -> Any:
        """out[j, r] = what the bits of row r of a block find in the table of query q + j; or those of the j-th of several
        blocks in that of query q. out: (TOGETHER, 32) uint16. ahead: see Plan.
        """

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code_type, _, table_type, _, _, out_type = signature.args
            codes, block, tables, q, ahead, out = arguments
            bytes_ = builder.extract_value(context.make_array(code_type)(context, builder, codes).shape, 1)

            def const(value: int) -> Any:
                return ir.Constant(_I64, value)

            shuffle = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_BYTES, [_BYTES, _BYTES]), "llvm.x86.avx2.pshuf.b"
            )
            twice = ir.Constant(ir.VectorType(_I32, 32), [*range(16), *range(16)])
            low, four = ir.Constant(_BYTES, [15] * 32), ir.Constant(_SHORTS, [4] * 16)
            eight = ir.Constant(_SHORTS, [8] * 16)
            length = builder.mul(bytes_, const(BLOCK))
            code = pointer(context, builder, code_type, codes, builder.mul(block, length), _I8)
            places = [builder.gep(code, [builder.mul(length, const(b))]) for b in range(blocks)]
            starts = [
                pointer(context, builder, table_type, tables, builder.mul(builder.add(q, const(j)), length), _I8)
                for j in range(together)
            ]
            before = builder.block
            loop, after = builder.append_basic_block("bytes"), builder.append_basic_block("summed")
            builder.branch(loop)  # there are eight bytes at least
            builder.position_at_end(loop)
            at = builder.phi(_I64)
            evens, odds = ([builder.phi(_SHORTS) for _ in range(together * blocks)] for _ in range(2))
            even, odd = list(evens), list(odds)
            if together == 1:  # what comes next: the hardware's own prefetcher stops at pages
                for each in places:
                    fetch(builder, builder.gep(each, [builder.add(at, ahead)]), *range(64, 8 * BLOCK, 64))
            for start in range(0, 8, _BYTES_TOGETHER):
                total: list[Any] = [None] * (together * blocks)
                for byte in range(start, start + _BYTES_TOGETHER):
                    offset = builder.add(at, const(byte * BLOCK))
                    split = []
                    for each in places:
                        both = load(builder, builder.bitcast(builder.gep(each, [offset]), _BYTES.as_pointer()), _BYTES)
                        upper = builder.bitcast(builder.lshr(builder.bitcast(both, _SHORTS), four), _BYTES)
                        split.append((builder.and_(both, low), builder.and_(upper, low)))
                    for half in range(2):
                        for j, table in enumerate(starts):
                            place = builder.gep(table, [builder.add(offset, const(16 * half))])
                            line = load(builder, builder.bitcast(place, _HALF.as_pointer()), _HALF)
                            line = builder.shuffle_vector(line, line, twice)
                            for b, halves in enumerate(split):
                                found = builder.call(shuffle, [line, halves[half]])
                                before_it = total[j + b]
                                total[j + b] = found if before_it is None else builder.add(before_it, found)
                for j in range(together * blocks):
                    words = builder.bitcast(total[j], _SHORTS)
                    even[j] = builder.add(even[j], words)
                    odd[j] = builder.add(odd[j], builder.lshr(words, eight))
            following = builder.add(at, const(8 * BLOCK))
            builder.cbranch(builder.icmp_signed("<", following, length), loop, after)
            at.add_incoming(const(0), before)
            at.add_incoming(following, loop)
            for phis, results in ((evens, even), (odds, odd)):
                for phi, result in zip(phis, results, strict=True):
                    phi.add_incoming(ir.Constant(_SHORTS, [0] * 16), before)
                    phi.add_incoming(result, loop)
            builder.position_at_end(after)
            for j in range(together * blocks):
                # The even bytes were added with the odd ones above them, which are taken off again.
                first = builder.sub(even[j], builder.shl(odd[j], eight))
                for half, value in enumerate((first, odd[j])):
                    place = pointer(context, builder, out_type, out, const(BLOCK * j + 16 * half), _SHORTS)
                    builder.store(value, place).align = 2
            return context.get_dummy_value()

        return types.void(codes, types.int64, tables, types.int64, types.int64, out), codegen

    return sums


@kernel
def plain_sums(codes, block, tables, first, together, ahead, out):
    """out[j, r] for query first + j, without vectors."""
    for j in range(together):
        for place in range(BLOCK):
            total = np.int64(0)
            for byte in range(codes.shape[1]):
                code = np.int64(codes[block, byte, place])
                total += np.int64(tables[first + j, 2 * byte, code & 15]) + np.int64(tables[first + j, 2 * byte + 1, code >> 4])
            out[j, place // 2 + (place & 1) * (BLOCK // 2)] = np.uint16(total)


@kernel
def plain_pair(codes, block, tables, q, ahead, out):
    """out[j, r] for block + j, without vectors."""
    plain_sums(codes, block + 1, tables, q, 1, ahead, out)
    out[1] = out[0]
    plain_sums(codes, block, tables, q, 1, ahead, out)


_one, _two, _four, _pair = _sums_of(1), _sums_of(2), _sums_of(4), _sums_of(1, 2)


@kernel
def fast_sums(codes, block, tables, first, together, ahead, out):
    """The same; together: 1, 2 or 4. ahead: see Plan."""
    if together == 4:
        _four(codes, block, tables, first, ahead, out)
    elif together == 2:
        _two(codes, block, tables, first, ahead, out)
    else:
        _one(codes, block, tables, first, ahead, out)


@kernel
def fast_pair(codes, block, tables, q, ahead, out):
    """Two blocks for one query: out[j, r] for block + j."""
    _pair(codes, block, tables, q, ahead, out)


@intrinsic
def _reached(
    typing: Any, sums: Any, j: Any, factors: Any, block: Any, step: Any, bias: Any, share: Any, least: Any, out: Any
) -> Any:  # fmt: skip
    """out[r] = scale (step U + bias) + share add, of the rows of a block. Returns which are above `least`, as bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sum_type, _, factor_type, _, _, _, _, _, out_type = signature.args
        sums, j, factors, block, step, bias, share, least, out = arguments
        floats, shorts, words = ir.VectorType(_F32, 8), ir.VectorType(_I16, 8), ir.VectorType(_I32, 8)

        def every(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(floats, ir.Undefined), value, ir.Constant(_I32, 0))
            return builder.shuffle_vector(first, first, ir.Constant(words, [0] * 8))

        def at(first: Any, offset: int) -> Any:
            return builder.add(builder.mul(first, ir.Constant(_I64, BLOCK)), ir.Constant(_I64, offset))

        steps, biases, shares, leasts = every(step), every(bias), every(share), every(least)
        twice = builder.mul(block, ir.Constant(_I64, 2))
        bits = ir.Constant(_I32, 0)
        for part in range(0, BLOCK, 8):
            found = load(builder, pointer(context, builder, sum_type, sums, at(j, part), shorts), shorts)
            scale, add = (
                load(builder, pointer(context, builder, factor_type, factors, at(twice, part + offset), floats), floats)
                for offset in (0, BLOCK)
            )
            value = fma(builder, builder.sitofp(builder.zext(found, words), floats), steps, biases)
            value = fma(builder, scale, value, builder.fmul(shares, add))
            builder.store(value, pointer(context, builder, out_type, out, ir.Constant(_I64, part), floats)).align = 4
            above = builder.bitcast(builder.fcmp_ordered(">", value, leasts), _I8)
            bits = builder.or_(bits, builder.shl(builder.zext(above, _I32), ir.Constant(_I32, part)))
        return builder.zext(bits, _I64)

    whole, real = types.int64, types.float32
    return types.uint64(sums, whole, factors, whole, real, real, real, real, out), codegen


@kernel
def allowed_in(allowed, n, block):
    """The allowed rows of a block, as bits. allowed: bitmap words, empty for all n rows."""
    bits = np.uint64(0xFFFF_FFFF)
    if len(allowed):
        bits &= allowed[block >> 1] >> np.uint64(32 * (block & 1))
    over = (block + 1) * BLOCK - n
    if over > 0:
        bits &= np.uint64(0xFFFF_FFFF) >> np.uint64(over)
    return bits & np.uint64(0xFFFF_FFFF)


def _scan_of(sums: Any, pair_of_blocks: Any) -> Any:
    @kernel
    def scan(tables, terms, codes, factors, n, allowed, first, last, plan, lists, sizes, least, due, reach, most, near):
        """Offers the rows of blocks first..last to the list of each query. Returns how many blocks were read.

        lists, sizes, least, due, reach, most, near: as in Lists; what was offered before stays there.
        """
        m = len(lists)
        together_at_most, tile, ahead = plan
        step = max(1, tile // (codes.shape[1] * BLOCK)) if m > together_at_most else last - first
        found, guess = np.empty((TOGETHER, BLOCK), np.uint16), np.empty(BLOCK, np.float32)
        read = 0
        for start in range(first, last, step):
            stop = min(last, start + step)
            q = 0
            while q < m:
                together = together_at_most
                while together > m - q:
                    together //= 2
                block = start
                while block < stop:
                    mask = allowed_in(allowed, n, block)
                    if mask == 0:
                        block += 1
                        continue
                    following = np.uint64(0)
                    if together == 1 and ahead == 0 and block + 1 < stop:
                        following = allowed_in(allowed, n, block + 1)
                    several = together if following == 0 else 2  # queries, or blocks
                    if following == 0:
                        sums(codes, block, tables, q, together, ahead, found)
                    else:
                        pair_of_blocks(codes, block, tables, q, ahead, found)
                    for j in range(several):
                        one, here = (q + j, block) if following == 0 else (q, block + j)
                        t, b, s = np.float32(terms[one, 0]), np.float32(terms[one, 1]), np.float32(terms[one, 2])
                        bits = _reached(found, j, factors, here, t, b, s, least[one], guess)
                        bits &= mask if here == block else following
                        while bits:
                            r = lowest(bits)
                            bits &= bits - np.uint64(1)
                            lists[one, sizes[one]] = packed(guess[r], here * BLOCK + r)
                            sizes[one] += 1
                            if sizes[one] == due[one]:
                                cut(lists, sizes, least, due, reach, most, near, one)
                                # Rows of this block were chosen by what had to be reached before; a later row of the same
                                # estimate would be cut anyway.
                    read += 1 if following == 0 else 2
                    block += 1 if following == 0 else 2
                q += together
        return read

    return scan


@kernel
def cut(lists, sizes, least, due, reach, most, near, q):
    """Leaves of a list what is kept of it (see the module), and says what others must be above."""
    size = sizes[q]
    if size > most:
        keep_least(lists[q], size, most)
        size = most
        worst = lists[q, 0]
        for i in range(1, most):
            worst = max(worst, lists[q, i])
        least[q] = max(least[q], key_in(worst))
    if size > near and reach[q] < np.inf:
        keep_least(lists[q], size, near)
        worst = lists[q, 0]
        for i in range(1, near):
            worst = max(worst, lists[q, i])
        bound = key_in(worst) - reach[q]
        kept = near
        for i in range(near, size):
            if key_in(lists[q, i]) > bound:
                lists[q, kept] = lists[q, i]
                kept += 1
        size = kept
        least[q] = max(least[q], bound)
    sizes[q], due[q] = size, min(lists.shape[1], size + max(_SLACK, near))


@kernel
def shorten(lists, sizes, least, due, reach, most, near):
    """Cuts every list. All rows were offered."""
    for q in range(len(lists)):
        cut(lists, sizes, least, due, reach, most, near, q)


plain_scan = _scan_of(plain_sums, plain_pair)
scan = _scan_of(fast_sums, fast_pair) if AVX2 else plain_scan


@kernel
def rank(
    queries, vectors, norms, metric, lists, sizes, least, due, reach, most, near, keys, rows, held, dropped, floors, tied
):  # fmt: skip
    """Shortens the lists, compares their rows, and leaves the best, in order (`kernels.select`). Returns how many they were."""
    m, d = queries.shape
    looked = 0
    shorten(lists, sizes, least, due, reach, most, near)
    for q in range(m):
        size = sizes[q]
        mine = np.empty(size, np.int64)
        for i in range(size):
            mine[i] = row_in(lists[q, i])
        mine.sort()  # so that a disk is read in one direction
        for i in range(min(_COMING, size)):
            prefetch(vectors, mine[i] * d, d)
        for i in range(size):
            row = mine[i]
            ahead = (mine[min(size - 1, i + _COMING)] - row) * d
            key = key_of(pair(queries, q * d, vectors, row * d, d, metric, ahead), norms[row], metric)
            offer(keys, rows, held, dropped, q, key, row)
        looked += size
    settle(keys, rows, held, dropped, floors, tied)
    return looked
