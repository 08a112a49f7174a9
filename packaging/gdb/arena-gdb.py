"""gdb commands for processes that have a heap of arenad mapped, alive or as a core file (ARENA_DEBUG=core).

    (gdb) source /usr/share/arena/arena-gdb.py   gdb does it itself where the library is installed; build/arena-gdb.py: make gdb
    (gdb) arena heaps            the heaps that are mapped
    (gdb) arena word ADDRESS     the object there: its word, its span, who holds it
    (gdb) arena span ADDRESS     the span there, and the words of its objects
    (gdb) arena roots            the named roots
    (gdb) print $arena_owner(p)  one line for an expression; so does each arena_ref_t that is printed

ADDRESS is any expression: an address in the heap, or a reference (arena_ref_t). Nothing is written, no function of the
program is called, and no debug information of the library is wanted: what is read is the map and the state words.
"""
import re
import struct

import gdb

# what the build puts here: FIELDS, SIZES, CLASSES and constants, by packaging/gdb/layout.c
# LAYOUT

# ---- reading ------------------------------------------------------------------------------------------------------------


def read(address, size):
    return gdb.selected_inferior().read_memory(address, size).tobytes()


def number(data, at, size):
    return int.from_bytes(data[at:at + size], "little")


def text(data):
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


class Record:
    """A struct of the layout, read once."""

    def __init__(self, kind, address):
        self.kind = kind
        self.data = read(address, SIZES[kind])

    def __getattr__(self, field):
        at, size = FIELDS[self.kind + "." + field]
        return number(self.data, at, size)

    def bytes_of(self, field):
        at, size = FIELDS[self.kind + "." + field]
        return self.data[at:at + size]


def round_up(value, to):
    return (value + to - 1) // to * to


def mappings():
    """(start, size, name) of each mapping of a file's beginning; of a core file by its list of mapped files."""
    for line in gdb.execute("info proc mappings", to_string=True).splitlines():
        m = re.match(r"\s*(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+(?:[r-][w-][x-][sp]\s+)?(\S.*)$", line)
        if m and int(m[4], 16) == 0:
            yield int(m[1], 16), int(m[3], 16), m[5].strip()


def region_of(name):
    """("memfd" or the folder, "heap" | "map" | "state"), or None."""
    m = re.match(r"/memfd:arena-(heap|map|state)( \(deleted\))?$", name)
    if m:
        return "memfd", m[1]
    m = re.match(r"(.*/)(heap|map|state)( \(deleted\))?$", name)
    return (m[1], m[2]) if m else None


class Heap:
    def __init__(self, map_at, state_at, header, start):
        self.map_at, self.state_at, self.header = map_at, state_at, header
        self.start = header.base if start is None else start
        self.bytes = header.heap_max
        pages = header.page_count
        self.tags_at = round_up(SIZES["map_header"], 4096)
        gens_at = self.tags_at + TAG_COUNT * SIZES["tag"]
        self.roots_at = round_up(gens_at + ROOT_GENS * 4 + ROOT_SLOTS_MAX // ROOT_BLOCK // 8, 4096)
        buckets_at = round_up(self.roots_at + header.root_slots * SIZES["root"], 4096)
        self.pages_at = round_up(buckets_at + header.root_slots * SIZES["root_bucket"], 4096)
        self.spans_at = round_up(self.pages_at + pages * 8, 4096)
        hazards_at = round_up(round_up(pages, 4096) + TAG_COUNT * 8, 4096)
        turning_at = round_up(hazards_at + HAZARD_COUNT * 4, 4096)
        self.words_at = round_up(turning_at + TAG_COUNT * 4, 4096)
        if round_up(self.spans_at + pages * SIZES["span"], 4096) != header.map_bytes or self.words_at > header.state_bytes:
            raise gdb.GdbError("the map of the heap is not laid out as this script knows it")

    def reference(self, value):
        """Of an address or a reference; None: it is neither."""
        if self.start <= value < self.start + self.bytes:
            return value - self.start
        return value if 0 < value < self.bytes else None

    def tag(self, tag):
        return Record("tag", self.map_at + self.tags_at + tag * SIZES["tag"])

    def span(self, page):
        return Record("span", self.map_at + self.spans_at + page * SIZES["span"])

    def entry(self, page):
        return number(read(self.map_at + self.pages_at + page * 8, 8), 0, 8)

    def word(self, unit, index):
        return number(read(self.state_at + self.words_at + (unit * UNIT_WORDS + index) * 2, 2), 0, 2)

    def is_committed(self, tag):
        return self.tag(tag).state in (TAG_TX_COMMITTED, TAG_TX_PUBLISHING)

    def word_text(self, word):
        if word == WORD_FREE:
            return "free"
        if word == WORD_SHARED:
            return "shared"
        if not word & 1:
            return "cached"
        return "shared by a commit" if self.is_committed(word >> 1) else "owned"

    def holder(self, word):
        """Who is meant by a word's tag, or ''."""
        tag = word >> 1
        if not tag:
            return ""
        record = self.tag(tag)
        kinds = ["nobody", "client", "dying client", "transaction", "committed transaction", "aborted transaction",
                 "transaction that is published"]
        kind = kinds[record.state] if record.state < len(kinds) else "tag in a state that there is not"
        owner = record.owner if record.state >= TAG_TX and 0 < record.owner < TAG_COUNT else tag
        client = self.tag(owner)
        by = "" if owner == tag else " of client %d" % owner
        return "tag %d, a %s%s: pid %d, uid %d, %s" % (tag, kind, by, client.pid, client.uid, text(client.bytes_of("command")))


def find_heaps():
    """Each heap once, of those of this layout. A process may have one mapped twice."""
    regions, heaps = [], {}
    for start, size, name in mappings():
        region = region_of(name)
        if region:
            regions.append((region[0], region[1], start, size))
    for place, kind, start, size in regions:
        if kind != "map":
            continue
        try:
            header = Record("map_header", start)
        except gdb.MemoryError:
            raise gdb.GdbError("the map of the heap is not in this core file: see ARENA_DEBUG=core")
        if header.magic != LAYOUT_MAGIC:
            continue
        if header.version != LAYOUT_VERSION or header.class_digest != CLASS_DIGEST:
            raise gdb.GdbError("a heap of another layout than this script's: %d, not %d" % (header.version, LAYOUT_VERSION))
        others = [r for r in regions if r[0] == place]
        states = [r[2] for r in others if r[1] == "state" and r[3] == round_up(header.state_bytes, 4096)]
        bodies = [r[2] for r in others if r[1] == "heap" and r[3] == round_up(header.heap_max, 4096)]
        nth = sum(1 for h in heaps.values() if h.bytes == header.heap_max)  # memfds of one size are told apart by their order
        if header.bytes_of("heap_id") not in heaps and states:
            heaps[header.bytes_of("heap_id")] = Heap(start, states[min(nth, len(states) - 1)], header,
                                                     bodies[min(nth, len(bodies) - 1)] if bodies else None)
    if not heaps:
        raise gdb.GdbError("no heap of arenad is mapped here")
    return list(heaps.values())


# ---- objects --------------------------------------------------------------------------------------------------------------


class Object:
    """What is at a reference. `index` is None where the span has no object there."""

    def __init__(self, heap, ref):
        entry = heap.entry(ref >> PAGE_SHIFT)
        self.heap, self.ref = heap, ref
        self.span_class = entry >> 5 & 0xff
        self.known = self.span_class in CLASSES or self.span_class >= CLASS_LARGE
        if not self.known:
            page = {PAGE_WARM: "free, with memory behind it", PAGE_COLD: "free, without memory behind it"}
            self.nothing = page.get(entry, "of no class that there is")
            return
        self.unit = entry >> 32
        self.page = (ref >> PAGE_SHIFT) - ((entry & 0xffffffff) >> PAGE_SHIFT | (entry & 0x1f) << 19)
        self.record = heap.span(self.page)
        if self.span_class >= CLASS_LARGE:
            self.size, self.objects = self.record.page_count << PAGE_SHIFT, 1
        else:
            self.size, _, self.objects = CLASSES[self.span_class]
        in_span = ref - (self.page << PAGE_SHIFT)
        self.index = in_span // self.size
        self.inside = in_span - self.index * self.size
        if self.index >= self.objects:
            self.known = False
            self.nothing = "the end of a span"

    @property
    def start(self):
        return (self.page << PAGE_SHIFT) + self.index * self.size

    @property
    def word(self):
        return self.heap.word(self.unit, self.index)

    def no_object(self):
        return "%#x is in no object: page %d is %s" % (self.ref, self.ref >> PAGE_SHIFT, self.nothing)

    def span_text(self):
        return "page %d, %d page%s, class %d (%s), %d object%s of %d bytes, lessee %d" % (
            self.page, self.record.page_count, "" if self.record.page_count == 1 else "s", self.span_class,
            "noscan" if self.span_class & 1 else "scan", self.objects, "" if self.objects == 1 else "s", self.size,
            self.record.lessee)

    def line(self):
        if not self.known:
            return self.no_object()
        word = self.word
        holder = self.heap.holder(word)
        return "%d bytes%s, %s%s" % (self.size, ", %d into it" % self.inside if self.inside else "", self.heap.word_text(word),
                                     ", " + holder if holder else "")


def find_object(value):
    heaps = find_heaps()
    for heap in heaps:
        if heap.start <= value < heap.start + heap.bytes:
            return Object(heap, value - heap.start)
    if len(heaps) == 1 and heaps[0].reference(value) is not None:
        return Object(heaps[0], value)
    raise gdb.GdbError("%#x is in no heap" % value)


def evaluate(argument):
    if not argument.strip():
        raise gdb.GdbError("an address is wanted")
    value = gdb.parse_and_eval(argument)
    if value.type.strip_typedefs().code == gdb.TYPE_CODE_ARRAY:
        value = value.address
    return int(value.cast(gdb.lookup_type("unsigned long")))


# ---- commands ---------------------------------------------------------------------------------------------------------------


class Arena(gdb.Command):
    """The heap of arenad that this process has mapped: arena heaps, roots, word ADDRESS, span ADDRESS."""

    def __init__(self):
        super().__init__("arena", gdb.COMMAND_DATA, prefix=True)


class ArenaHeaps(gdb.Command):
    """The heaps of arenad that are mapped."""

    def __init__(self):
        super().__init__("arena heaps", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        for heap in find_heaps():
            print("heap %s: %d MiB at %#x, served %d times" % (heap.header.bytes_of("heap_id").hex(), heap.bytes >> 20, heap.start,
                                                            heap.header.epoch))


class ArenaWord(gdb.Command):
    """The object at an address or a reference: its word, its span, who holds it."""

    def __init__(self):
        super().__init__("arena word", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument, from_tty):
        found = find_object(evaluate(argument))
        if not found.known:
            print(found.no_object())
            return
        word = found.word
        print("object   %#x, reference %#x, %d bytes, and %d into it" % (found.heap.start + found.start, found.start, found.size,
                                                                          found.inside))
        print("span     " + found.span_text())
        print("word     %#06x: %s" % (word, found.heap.word_text(word)))
        holder = found.heap.holder(word)
        if holder:
            print("holder   " + holder)


class ArenaSpan(gdb.Command):
    """The span at an address or a reference, and the words of its objects, like ones together."""

    def __init__(self):
        super().__init__("arena span", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument, from_tty):
        found = find_object(evaluate(argument))
        if not found.known:
            print(found.no_object())
            return
        print("span     " + found.span_text())
        data = read(found.heap.state_at + found.heap.words_at + found.unit * UNIT_WORDS * 2, found.objects * 2)
        words = struct.unpack("<%dH" % found.objects, data)
        first = 0
        for i in range(1, found.objects + 1):
            if i == found.objects or words[i] != words[first]:
                which = "%d" % first if i == first + 1 else "%d..%d" % (first, i - 1)
                holder = found.heap.holder(words[first])
                print("%-12s %s%s" % (which, found.heap.word_text(words[first]), ", " + holder if holder else ""))
                first = i


class ArenaRoots(gdb.Command):
    """The named roots of each heap, and what they lead to."""

    def __init__(self):
        super().__init__("arena roots", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        for heap in find_heaps():
            for slot in range(min(heap.header.root_top, heap.header.root_slots)):
                root = Record("root", heap.map_at + heap.roots_at + slot * SIZES["root"])
                if root.ref:
                    print("%-24s %#14x  %s" % (text(root.bytes_of("name")), root.ref, Object(heap, root.ref).line()
                                               if root.ref < heap.bytes else "beyond the heap"))


class ArenaOwner(gdb.Function):
    """$arena_owner(ADDRESS): what is there and who holds it, as a line."""

    def __init__(self):
        super().__init__("arena_owner")

    def invoke(self, value):
        return find_object(int(value.cast(gdb.lookup_type("unsigned long")))).line()


class ReferencePrinter:
    """An arena_ref_t with what it refers to."""

    def __init__(self, value):
        self.value = int(value.cast(gdb.lookup_type("unsigned long")))

    def to_string(self):
        if not self.value:
            return "0"
        try:
            return "%#x (%s)" % (self.value, find_object(self.value).line())
        except (gdb.error, gdb.GdbError):
            return "%#x" % self.value


def look_up_printer(value):
    return ReferencePrinter(value) if value.type.name == "arena_ref_t" else None


Arena()
ArenaHeaps()
ArenaWord()
ArenaSpan()
ArenaRoots()
ArenaOwner()
gdb.pretty_printers.append(look_up_printer)
