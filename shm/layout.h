/* The layout of the three shared regions, on which daemon and clients must agree byte for byte.
 *
 *   heap    the objects and nothing else          clients read-write
 *   map     who holds what; below                 daemon writes, clients read
 *   state   a word an object, a hint byte a page  daemon and clients
 *
 *   map:    header | tags | root gens, touched | roots | buckets of roots | page entries | span records
 *   state:  hints (1 byte a page) | tickets (8 bytes a tag) | hazards | turning (4 bytes a tag) | words (16 bits an object, in
 *           units of 8 words)
 *
 * Invariants of the map (span_check(), tag_check(), root_check() verify them; O(1) for each span, tag, root):
 *   1. A page is in at most one span: its entry names the span class, the page's index in it, and its first unit.
 *   2. The record of a span is valid from the store of its class on, which is last: words, then entries, then record.
 *   3. A span's lessee is 0 or the tag of a client in state TAG_CLIENT or TAG_CLIENT_DYING.
 *   4. No two spans share a unit of state words.
 *   5. A page entry of class 0 is PAGE_COLD or PAGE_WARM: free, without or with memory behind it.
 */
#ifndef SHM_LAYOUT_H
#define SHM_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "shm/atomic.h"
#include "shm/sizeclass_table.h"

#define LAYOUT_MAGIC   0x50414548414e4552ULL /* "RENAHEAP" */
#define LAYOUT_VERSION 3

#define PAGE_SHIFT 13
#define PAGE_SIZE  (1ULL << PAGE_SHIFT)

#define HEAP_MIN      (1ULL << 20)  /* bytes */
#define HEAP_MAX      (1ULL << 40)
#define HEAP_MAX_SPAN ((1U << 24) - 1) /* pages: what the index of a page entry can count */

#define UNIT_WORDS 8                          /* state words are handed out in units of 16 bytes */
#define UNIT_BYTES (UNIT_WORDS * sizeof(uint16_t))

#ifndef TAG_COUNT        /* the explorer's world is smaller */
#define TAG_COUNT  32768 /* tags 1..32767 */
#endif
#ifndef HAZARD_COUNT     /* so are these */
#define HAZARD_COUNT 1024 /* claims and frees of committed transactions' objects that are under way at once */
#endif
#define ROOT_NAME  64    /* bytes of a name with its NUL */
#define ROOT_GENS  256   /* futex words, by hash of the name */
#define ROOT_SLOTS_MAX (1u << 20)
#define ROOT_BLOCK 512   /* buckets that share a bit of root_touched: a block that was never written is not read either,
                            as reading a hole of a shared file gives it memory */

/* ---- span classes: size class x {scan, noscan} --------------------------------------------------------------- */

#define SPAN_CLASS(size_class, noscan) ((unsigned)(size_class) * 2 + ((noscan) ? 1 : 0))
#define SPAN_CLASS_COUNT               (SIZE_CLASS_COUNT * 2)
#define CLASS_LARGE                    254u /* one object a span, of any number of pages; 255: noscan */
#define CLASS_LIMIT                    256u /* of an array by span class, the large ones among them */
#define CLASS_IS_LARGE(c)              ((c) >= CLASS_LARGE)
#define CLASS_IS_NOSCAN(c)             ((c) & 1u)
#define CLASS_VALID(c)                 (((c) >= 2u && (c) < SPAN_CLASS_COUNT) || CLASS_IS_LARGE(c))

/* ---- header ----------------------------------------------------------------------------------------------------- */

/* What the move of a root changes in two places; see shm/redo.h. */
struct redo {
    uint32_t valid;     /* sync: daemon; store_release [RD1] after the rest */
    uint16_t tag;       /* the transaction; 0: none */
    uint16_t client;    /* whose `done` becomes `request`; 0: nobody's */
    uint32_t request;
    uint32_t root_slot;
    uint32_t root_uid;
    uint32_t spare;
    uint64_t root_ref;
    char root_name[ROOT_NAME];
};

enum { HEAP_ID_BYTES = 16 };

enum { USER_SHORTAGES = 16 };

struct map_header {
    /* sync: constant after heap_format() */
    uint64_t magic;
    uint32_t version;
    uint32_t page_shift;
    uint8_t heap_id[HEAP_ID_BYTES];
    uint64_t heap_max;    /* bytes */
    uint64_t base;        /* the address that every process tries first */
    uint64_t map_bytes;
    uint64_t state_bytes;
    uint64_t page_count;
    uint64_t unit_count;
    uint32_t root_slots;
    uint32_t class_digest; /* of the size class table: two builds with other tables never share a heap */
    char boot_id[32];      /* digits; clients of an earlier boot are surely gone. Zeros: not known. sync: daemon, at its start */
    uint64_t pid_namespace; /* inode of the one in which the tags' pids were read; 0: not known. sync: daemon, at its start */
    uint64_t created_ns;   /* real time */
    /* sync: daemon, atomic */
    uint32_t epoch; /* how often a daemon was started over this heap */
    uint32_t collecting; /* serial of the collection that runs, else 0. store_release, then a full fence [GC1] */
    uint32_t tag_top; /* no tag at or above it was ever used */
    uint32_t collections; /* how many were begun */
    uint64_t top; /* no page at or above it was ever backed; raised before the first entry there is written */
    uint64_t refills, reclaimed_clients, reclaimed_objects, pages_returned, round_trips;
    struct redo redo;
    uint64_t root_key[2]; /* of the hash of roots' names: random. sync: constant after heap_format() */
    uint32_t root_top;    /* no slot of a root at or above it was ever written. sync: daemon, atomic */
    uint32_t root_free;   /* the first of the free slots below it, as struct root_bucket's `first`. sync: daemon */
    uint32_t cut_off; /* how often a file of the backing directory was found cut off or punched, and mended. sync: daemon */
    uint32_t shortages; /* how often memory was found short. Who finds it changed gives back what it hoards. sync: daemon,
                           atomic */
    uint32_t snapped; /* serial of the collection whose snapshot is taken: the words of commits may be turned again. sync: daemon,
                         store_release [TN1] */
    uint32_t clients;   /* attached now: the more there are, the less each may hoard. sync: daemon, atomic */
    uint32_t user_shortages[USER_SHORTAGES]; /* the same as shortages where a user has met a limit: uid % USER_SHORTAGES; 0: never.
                                                sync: daemon, atomic */
};
_Static_assert(sizeof(struct map_header) <= 4096, "it has a page of its own: what is added at its end moves nothing");

/* ---- tags: clients and transactions ----------------------------------------------------------------------------- */

enum tag_state {
    TAG_FREE = 0,
    TAG_CLIENT,          /* a live client */
    TAG_CLIENT_DYING,    /* the pass over the state words frees what bears the tag; then TAG_FREE */
    TAG_TX,              /* a transaction that runs, or may be begun by its owner at any time */
    TAG_TX_COMMITTED,    /* its words count as SHARED until they are turned */
    TAG_TX_DYING,        /* the pass frees them */
    TAG_TX_PUBLISHING,   /* the pass turns them to SHARED: committed, and its client is gone */
    TAG_STATE_COUNT
};

struct tag {
    uint32_t state;      /* enum tag_state. sync: daemon, store_release [TG1] after the other fields, a fence before [TG2] */
    uint16_t owner;      /* of a transaction: its client's tag. sync: daemon, atomic: see tag_is_of() */
    uint8_t read_only;
    uint8_t gc_mode;     /* enum gc_mode: what the client has declared. sync: daemon, atomic */
    uint32_t pid;        /* in header->pid_namespace; 0: not seen from there */
    uint32_t uid;
    uint32_t done;       /* id of the client's last request that took effect, of those that a ticket is for, kept over a
                            RESUME; 0: none. sync: daemon, atomic, of a root's move under the redo record */
    uint32_t image;      /* of the program that the process ran when it attached: another one has replaced it by exec. 0: not told */
    uint32_t copy;       /* of the library in that program: it has one client of a kind for each heap. 0: not told */
    uint32_t start_time; /* of the process, clock ticks since boot, the lower 32 bits; 0: could not be read */
    uint32_t since_s;    /* real time of admission */
    uint64_t inode;      /* of its pidfd in pidfs, which names the process until the next boot; 0: not known */
    char command[16];
    uint64_t pins;       /* reference of its first table of pins, 0: none. sync: daemon, atomic */
};

/* What a client says of the references that it holds outside the heap: see daemon/passes/gc.c. */
enum gc_mode {
    GC_RUNS = 0,      /* nothing: no collection can run */
    GC_SAFEPOINT = 1, /* it uses none but those that it has pinned, and changes nothing, until it has left */
    GC_PINS = 2,      /* it runs, and pins what it holds */
    GC_MODE_COUNT
};

/* A table of pins: an OWNED object of its client, scanned as any other. */
struct pin_table {
    uint64_t next;    /* reference of the next one, 0: the last. sync: the client */
    uint64_t slots[]; /* references, 0: none. sync: the client, atomic */
};
#define PIN_TABLE_BYTES 8192
#define PIN_TABLE_SLOTS ((PIN_TABLE_BYTES - sizeof(uint64_t)) / sizeof(uint64_t))

/* ---- roots -------------------------------------------------------------------------------------------------------- */

struct root {
    uint32_t next; /* of its bucket, or of the free ones: slot + 1; 0: the last. sync: daemon, atomic, under its bucket's seq */
    uint32_t uid;  /* who made it, for quotas */
    uint64_t ref;  /* 0: there is no such root. sync: as next */
    uint32_t used; /* it is in its bucket's chain. sync: as next */
    uint32_t spare;
    char name[ROOT_NAME]; /* sync: as next */
};

/* Roots whose names' hashes fall together. There are as many as slots. */
struct root_bucket {
    uint32_t seq;   /* odd while the chain or a root in it is written; a seqlock. sync: daemon [RT1] */
    uint32_t first; /* slot + 1; 0: none. sync: daemon, atomic */
};

/* ---- pages and spans ------------------------------------------------------------------------------------------------ */

/* Page entry, 64 bits:  | first unit of the span : 32 | index, low 19 | span class : 8 | index, high 5 |
 * The index is the page's in its span. What a free needs stands where it costs one operation: the unit on top, the class
 * times 32, and for a span of less than 4 GiB the bytes before this page, index * PAGE_SIZE, as they are. Another layout of
 * it is another layout of client/arena_inline.h. */
#define PAGE_COLD 0ULL         /* free, no memory behind it */
#define PAGE_WARM (1ULL << 32) /* free, backed */

#define PAGE_CLASS_BITS 0x1fe0u /* the class, times 32 */

static inline uint64_t page_entry_make(unsigned span_class, uint32_t unit, uint32_t index)
{
    return (uint64_t)unit << 32 | (uint64_t)(index & 0x7ffff) << PAGE_SHIFT | (uint64_t)span_class << 5 | index >> 19;
}
static inline unsigned page_entry_class(uint64_t entry) { return entry >> 5 & 0xff; }
static inline uint32_t page_entry_unit(uint64_t entry) { return (uint32_t)(entry >> 32); }
static inline uint32_t page_entry_index(uint64_t entry)
{
    return ((uint32_t)entry >> PAGE_SHIFT) | ((uint32_t)entry & 0x1f) << 19;
}

/* A span of small objects has no more pages: so many hints are its own, and so many bits `returned` has. */
#define SMALL_PAGES 16

/* The record of a span stands at its first page. */
struct span {
    uint16_t lessee;     /* tag of the client that alone may take its FREE objects; 0: none. sync: daemon [LS1] */
    uint16_t returned;   /* bit i: page i has no memory behind it; only of a span that nobody leases.
                            sync: daemon [RP1] */
    uint8_t span_class;  /* 0: no span begins here. sync: daemon, store_release [SP1], last of all */
    uint8_t spare[3];
    uint32_t page_count; /* sync: daemon, of a large span that grows in place [PC1] */
    uint32_t unit;       /* first unit of its state words */
    uint32_t uid;        /* whose quota it is charged to */
    uint16_t charged;    /* the client whose quota it is charged to; 0: it is gone */
    uint16_t spare2;
};

/* ---- a process's view of the regions ---------------------------------------------------------------------------------- */

struct heap {
    uint8_t *base; /* of the heap region, here */
    uint64_t heap_bytes;
    struct map_header *header;
    struct tag *tags;
    uint32_t *root_gens;
    uint64_t *root_touched; /* a bit a block of buckets: 0: all empty. sync: daemon, atomic, before the first write there */
    struct root *roots;
    struct root_bucket *root_buckets;
    uint64_t *pages;
    struct span *spans;
    uint8_t *hints;
    uint64_t *tickets; /* by client's tag: see shm/ticket.h */
    uint32_t *hazards; /* HAZARD_COUNT; see shm/hazard.h */
    uint32_t *turning; /* by client's tag: how many of its threads turn words of a committed transaction to SHARED now. sync:
                          its client, the daemon resets it with the tag; atomic [TN1] */
    uint16_t *words;
    uint64_t page_count, unit_count;
    uint32_t root_slots;
};

struct geometry {
    uint64_t heap_bytes, page_count, unit_count;
    uint64_t tags_at, gens_at, roots_at, buckets_at, pages_at, spans_at, map_bytes;
    uint64_t tickets_at, hazards_at, turning_at, words_at, state_bytes;
    uint32_t root_slots;
};

/* heap_max: bytes, rounded up to 1 MiB. 0, or -EINVAL when it is out of [HEAP_MIN, HEAP_MAX]. */
int geometry_init(struct geometry *g, uint64_t heap_max, uint32_t root_slots);

/* Lays the view `h` over three mappings of g's sizes; reads and writes nothing. heap may be NULL. */
void heap_view(struct heap *h, const struct geometry *g, void *heap, void *map, void *state);

/* Writes a new header into zeroed regions; only root_key may be there before. die: without magic, which is last, the regions are nobody's heap. */
void heap_format(struct heap *h, const struct geometry *g, const uint8_t heap_id[16], uint64_t base);

/* Checks a header that came from outside against the sizes of the regions: 0 and its geometry, or -EPROTO with
 * `ret_why` set to a static text. */
int heap_check_header(const struct map_header *header, uint64_t map_bytes, uint64_t state_bytes, struct geometry *ret_g,
                      const char **ret_why);

#endif
