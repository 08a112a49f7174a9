/* The core of the daemon: everything that it knows about its heap, and what it does with it.
 *
 *   server (libuv)  ->  clients | reclaim | sweep | census | gc     ->  mcentral  ->  mheap  ->  pagealloc
 *
 * All of it runs on the loop's thread, takes no lock and makes no system call: time comes in as an argument, memory is
 * backed and returned through `struct backing`, asynchronously. So tests drive it without a loop. It lives in private
 * memory and can be rebuilt from the map and the state words at any time: core_start() does just that, on an empty heap
 * and on one that an earlier daemon left.
 *
 * Nothing that a client can write is believed: state words are read once and only compared, hints are hints, numbers
 * from packets are looked up before they are used. Every walk is bounded by a budget that its caller passes in.
 */
#ifndef DAEMON_CORE_H
#define DAEMON_CORE_H

#include <errno.h>
#include <stdbool.h>

#include <uthash.h>

#include "daemon/core/mheap.h"
#include "shm/layout.h"
#include "shm/span.h"
#include "shm/state.h"
#include "shm/tag.h"
#include "shm/ticket.h"

/* what is allowed; from the config, can change at any time. 0: no limit */
struct limits {
    uint64_t client_bytes, uid_bytes; /* charged spans */
    uint32_t client_spans, uid_spans;
    uint32_t clients, uid_clients;
    uint32_t roots, uid_roots;
    uint32_t uid_connections; /* 0: uid_clients and CONNECTIONS_SPARE */
    uint32_t connections;     /* 0: clients and twice CONNECTIONS_SPARE */
    uint32_t client_transactions, uid_transactions, transactions; /* tags for them */
};

/* Which of them refused last, for the reply to an -EDQUOT: as `limit` is called in the config. */
struct refusal {
    const char *limit;
    uint64_t most, used, more; /* bytes or a number, as the limit's unit is */
};

/* Private record of a span, by its first page: which list it is on and how many objects were free when last counted. On
 * `returned` are the spans with free objects of which some pages have no memory behind them; busy ones, whose pages are
 * being returned or backed, are on no list. */
enum span_list { LIST_NONE, LIST_NONEMPTY, LIST_EMPTY, LIST_RETURNED, LIST_BUSY };
struct dspan {
    union {
        struct {
            uint32_t next, prev; /* first pages; SPAN_END ends */
            uint16_t free;
            uint8_t list;
            uint8_t in_flight;   /* runs of pages, of a busy one */
            uint8_t tick;        /* the mheap's, when it came to nonempty */
            uint8_t looked;      /* for pages to return, since then */
            uint16_t listed;     /* its lessee's resume_serial when a RESUME has listed it; 0: not since it was leased */
        };
        /* Of the first page of those that were a span's, or a part of one, and whose entries are cleared by turns. */
        struct {
            uint32_t next;  /* first page; 0: the last */
            uint32_t pages; /* to be cleared; those behind them are free */
            uint32_t unit;  /* given up with the last of them; 0: none */
        } clearing;
    };
};
#define SPAN_END UINT32_MAX

/* Of one user: what all its clients pin. sync: loop thread */
struct uid_account;

/* A large span, or what one grows by, whose entries are written by turns: its pages are the mheap's no more, and no record
 * shows them yet. */
struct cutting {
    uint64_t first;       /* page of the span */
    uint32_t from, pages; /* entries to be written, from index `from` on; pages 0: none */
    uint32_t done;
    uint32_t unit;
    uint8_t span_class;
    struct client *next;  /* of those whose entries are not all written */
};

enum client_state { CLIENT_NONE, CLIENT_LIVE, CLIENT_DETACHED, CLIENT_DYING };
struct client {
    enum client_state state;
    uint16_t tag;
    bool read_only;
    bool resuming;          /* between WELCOME and the last RESUME */
    uint16_t resume_serial; /* of that; never 0 */
    uint32_t pid, uid;
    uint64_t leased_pages, leased_spans;
    struct cutting cutting;
    uint32_t next_unit;     /* behind its last units of state words, see mheap_alloc_units() */
    uint64_t charged_pages, charged_spans;
    uint64_t refills;
    uint64_t heard_ns;                  /* monotonic: its last message */
    uint64_t trim_asked, trim_answered; /* serial numbers of shortages, in 32 bits */
    bool trim_waited;                   /* it had answered the one before */
    uint16_t *tx_tags;
    uint32_t tx_count, tx_capacity;
    struct uid_account *account;
    void *connection; /* the server's */
    int pidfd;        /* the server's; -1 none */
    void *watch;      /* the server's */
    char untold[64];  /* why it cannot be told whether its process lives, "": it can. The server's */
    uint64_t untold_since_ns;
};

/* A span class's central list. Spans on `nonempty` are unleased and had a FREE object when last counted; on `empty` are
 * those without, and the leased ones. Both are oldest first. */
struct mcentral {
    uint32_t empty_first, empty_last;
    uint64_t nonempty_count, empty_count, returned_count;
    uint64_t refills;
};

/* Of a class, the spans of one user that its clients may lease. */
struct user_spans {
    uint32_t nonempty_first, nonempty_last;
    uint32_t returned_first, returned_last;
};

/* The circular pass over all spans on behalf of dead tags; see reclaim.c */
struct reclaim {
    bool running;
    uint64_t cursor;        /* page */
    uint32_t dying_count;   /* tags in `start` that are not through */
    uint64_t *start;        /* by tag: pages to go until it is through; 0: not dying */
};

/* Clients that were told to trim and have not answered, though they had the time before; and those that may be told. */
struct trimmers {
    uint32_t awaited, able;
};

/* Work of one turn of the loop: what was done since turn_end(), and the most that any turn has done. No client can make a
 * turn longer than the bounds below, whatever it sends and writes: turn_end() asserts them. */
struct turn {
    /* for packets and requests that wait; what a pass does is bounded by the pass */
    uint64_t words;   /* state words read or cleared */
    uint64_t entries; /* of pages, written */
    uint64_t backed;  /* bytes of state words backed on the loop; heap pages are backed off it */
    uint64_t packets; /* read from sockets */
    uint64_t retries; /* of requests that wait for memory */
    uint64_t trims;   /* asked for */
    uint64_t bytes;   /* of packets, read and answered: copies. No more than TURN_BYTES and what one packet may have */
    struct trimmers trimmers;
    bool trims_counted; /* the former, in this turn and since clients were told last */
};

struct core {
    struct heap heap;
    struct mheap mheap;
    struct limits limits;
    struct refusal refusal;
    struct mcentral central[CLASS_LIMIT];
    struct dspan *dspans;
    struct client **clients; /* by tag */
    uint32_t client_count, connection_count, tag_cursor, tx_tag_count;
    struct uid_account *accounts; /* uthash */
    uint32_t root_count;
    uint64_t root_changes;
    struct reclaim reclaim;
    uint64_t sweep_cursor;   /* page */
    uint64_t sweep_to_go;    /* pages of a cycle that was asked for */
    uint64_t sweep_serial;   /* cycles completed */
    uint64_t scavenge_cursor; /* page */
    bool scavenge_now;        /* spans need not be idle: a trim was asked for */
    uint64_t progress;       /* counts whatever may let a waiting request succeed */
    uint64_t spans;
    struct client *cutting_first, *cutting_last; /* whose entries are written by turns, */
    uint32_t clearing;       /* and first page of those that are cleared so; 0: none */
    uint64_t cold_in_spans;  /* pages of spans that have no memory behind them: the sum of `returned` in the map */
    uint64_t trim_serial;    /* the last shortage: header->shortages, or of a limit: header->user_shortages */
    uint64_t refused_full, refused_limit; /* requests for memory, since this daemon was started */
    struct turn turn, turn_most;
    uint64_t now_ns;         /* monotonic, as last passed in */
    void (*wake_root)(void *context, uint32_t *gen); /* futex wake; NULL in tests */
    void *wake_context;
};

/* Budgets: work a turn of the loop. Once a turn has done so much, no other packet is read and no request tried in it:
 * turn_has_room(). PACKET_*: what one packet or retry may cost at most. tests/crash/turn_test.c comes near to each. */
enum {
    TURN_WORDS = 16384,      /* state words read or cleared; also by a pass, a sweep or a census, where a page counts as one */
    TURN_ENTRIES = 8192,     /* page entries written */
    TURN_BACKED = 1 << 20,   /* bytes of state words backed */
    TURN_SPANS = 4096,       /* spans visited */
    TURN_HINTS = 262144,     /* hint bytes looked at */
    LEASE_SWEEP_SPANS = 256, /* spans counted by a refill that finds nonempty empty */
    LEASE_SPANS_MAX = 128,   /* spans of one grant */
    RETURN_SPANS_MAX = 1024, /* spans given back by one packet, */
    RETURN_SPANS_TURN = 128, /* so many at a time: the rest of it is another packet */
    TURN_PACKETS = 64,       /* packets read */
    TURN_RETRIES = 64,       /* requests tried again */
    TURN_NOTICES = 64,       /* clients told to trim */
    TURN_BYTES = 1 << 18,    /* of packets */
    SPAN_WORDS_MAX = 2048,   /* objects of a span */
    BACKED_STEP = 1 << 18,   /* bytes of state words backed at a time */

    /* what it gives back is counted, then a sweep looks, then what is granted is cleared */
    PACKET_WORDS = RETURN_SPANS_TURN * SPAN_WORDS_MAX + TURN_WORDS + SPAN_WORDS_MAX + LEASE_SPANS_MAX * SPAN_WORDS_MAX,
    /* Entries of what is given back, of what a sweep finds free, and of what is granted. Those of larger spans are written and
     * cleared at once only where the turn has room for all of them; else by turns, see mcentral_entries_turn(). */
    PACKET_ENTRIES = (RETURN_SPANS_TURN + LEASE_SWEEP_SPANS + LEASE_SPANS_MAX) * SMALL_PAGES,
    /* All behind what is backed is free, and spans of one class take the lowest lines there: the words of a grant follow
     * one another, SPAN_WORDS_MAX words a span being whole lines. Then the end of a step. */
    PACKET_BACKED = LEASE_SPANS_MAX * SPAN_WORDS_MAX * 2 + BACKED_STEP,
};

/* Rebuilds all private state from the map and the words. 0, -ENOMEM, or -EUCLEAN with `ret_why` (256 bytes): the heap
 * cannot be trusted. `backing` must answer synchronously or later, never inside the call that asked. */
int core_start(struct core *core, const struct heap *heap, const struct backing *backing, const struct limits *limits,
               uint64_t now_ns, char *ret_why);
void core_stop(struct core *core);

/* Does up to a turn's work of whatever is pending (reclaim, sweep, page entries); true if there is more. */
bool core_turn(struct core *core);

/* More may be done for clients in this turn. */
static inline bool turn_has_room(const struct core *core)
{
    const struct turn *t = &core->turn;
    return t->words < TURN_WORDS && t->entries < TURN_ENTRIES && t->backed < TURN_BACKED && t->bytes < TURN_BYTES;
}
void turn_end(struct core *core);

/* ---- mcentral.c ------------------------------------------------------------------------------------------------------ */

void mcentral_init(struct core *core);

/* cache_span: leases spans of a class to a client, about `pages` pages of them, writes their first pages.
 * Returns their number; -EAGAIN: memory is being backed, try again when core->progress moved; -ENOMEM, -EDQUOT.
 * *ret_fresh: cut for this. die: leased spans whose client was told nothing: it will not list them when it resumes, and
 * the daemon takes them back. */
int mcentral_cache_span(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t *out,
                        uint32_t capacity, bool *ret_fresh);
int mcentral_cache_large(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t align,
                         uint32_t *out, bool *ret_fresh);

/* uncache_span: takes a span back, counts it, lists it. -EPERM: not leased by this client. */
int mcentral_uncache_span(struct core *core, struct client *client, uint64_t first);

/* Lists an unleased span by its count, or gives it to the mheap if it is wholly free. */
void mcentral_place(struct core *core, const struct span_info *span, uint32_t free_objects);

/* Lists a span found leased at a start. */
void mcentral_list_leased(struct core *core, const struct span_info *span);

/* A leased large span to `pages` pages in place, as request `request` of the client: 0, -ENOMEM when what follows is not
 * free, -EPERM, -ECANCELED. */
int mcentral_extend(struct core *core, struct client *client, uint32_t request, uint64_t first, uint32_t pages);

/* What was begun for a large request of this client, and is not granted, is undone. */
void mcentral_give_up(struct core *core, struct client *client);

/* Writes and clears a turn's worth of the entries that are left; true: there are more. A span of 64 GiB has 8.4 million. */
bool mcentral_entries_turn(struct core *core);
static inline bool mcentral_entries_wait(const struct core *core) { return core->clearing || core->cutting_first; }

/* Entries that a span may have cleared at once, when it is uncut. */
static inline uint32_t span_entries_now(const struct span_info *span)
{
    return span->page_count <= SMALL_PAGES ? span->page_count : 0;
}

/* Notes a span that the map says is charged to a user and to a client of it (NULL: it is gone). */
void span_charged(struct uid_account *account, struct client *client, uint32_t pages);

/* Makes a user's lists of spans of a class, for its first one: 0 or -ENOMEM. They stay. */
int account_spans(struct uid_account *account, unsigned span_class);

const char *mcentral_check(struct core *core, uint64_t first);

/* A span leaves its list while pages of it are in flight, and comes back to the one that its count and pages say. */
void mcentral_set_busy(struct core *core, const struct span_info *span);
void mcentral_set_idle(struct core *core, const struct span_info *span);

/* ---- scavenge.c ------------------------------------------------------------------------------------------------------ */

/* Looks at up to `spans` spans and `words` words from its cursor on, and returns the free pages of idle ones. True: the
 * cursor has not come to the end. */
bool scavenge_turn(struct core *core, uint32_t spans, uint32_t words);

/* Backs returned spans of a user's and a class again, about `pages` pages of them: -EAGAIN when that is under way, -ENOMEM: there are
 * none, or memory cannot be had. */
int scavenge_back(struct core *core, struct uid_account *account, unsigned span_class, uint32_t pages);

/* A step of a walk over spans, as span_next(); a run of free pages is one step. */
static inline bool core_span_next(const struct core *core, uint64_t *page, struct span_info *ret)
{
    uint64_t at = *page;
    if (span_next(&core->heap, page, ret))
        return true;
    if (pagealloc_all_free(&core->mheap.free, at, 1)) {
        uint64_t taken = pagealloc_next_taken(&core->mheap.free, at);
        *page = taken < core->heap.page_count ? taken : core->heap.page_count;
    }
    return false;
}

/* What a page's span says of memory behind its pages, and the count of them all. */
static inline void core_set_returned(struct core *core, uint64_t first, uint16_t mask)
{
    core->cold_in_spans += (uint64_t)__builtin_popcount(mask);
    core->cold_in_spans -= (uint64_t)__builtin_popcount(core->heap.spans[first].returned);
    span_set_returned(&core->heap, first, mask);
}

/* Pages of the heap that should have memory behind them: those of spans and warm ones. What is in flight may have some. */
static inline uint64_t core_backed_pages(const struct core *core)
{
    return core->mheap.used_pages + core->mheap.warm.free_count - core->cold_in_spans;
}

/* Looks, from page *cursor on and at `steps` places at most, for cold pages that have memory behind them: where
 * has_memory() says so they are taken out of use, and clear() is to clear them and answer with core_cleared(). *ret_asked:
 * pages asked for; stops at `most`. True: *cursor is at the end. */
struct stray_ops {
    void *context;
    uint64_t (*has_memory)(void *context, uint64_t first, uint64_t pages); /* the first of them that has; first + pages: none */
    int (*clear)(void *context, uint64_t first, uint64_t pages);
};
bool scavenge_strays(struct core *core, const struct stray_ops *ops, uint64_t *cursor, uint32_t steps, uint64_t most,
                     uint64_t *ret_asked);
void core_cleared(struct core *core, uint64_t first, uint64_t pages);

/* The backing's answers, for pages of spans and of the mheap alike. */
void core_grown(struct core *core, uint64_t first, uint64_t pages, int error, uint64_t now_ns);
void core_returned(struct core *core, uint64_t first, uint64_t pages, int error);

/* ---- clients.c --------------------------------------------------------------------------------------------------------- */

/* Admits a process: *ret with a tag, in the map before this returns. -EDQUOT, -EUSERS (no tag is free), -ENOMEM. */
int client_attach(struct core *core, const struct tag *identity, struct client **ret);

/* A client of the process that `identity` names and that is gone though the process lives, behind `after` (NULL: the first);
 * NULL: none.
 *  - Another image of the process has replaced its own, by exec.
 *  - fresh: `identity` is that of a client that is new. Then the same copy of the library has no other one of its kind.
 * Images and copies that were not told tell nothing. */
struct client *client_replaced(const struct core *core, const struct tag *identity, bool fresh, const struct client *after);

/* Its process is dead, or said goodbye: from here on the pass frees what bears its tags. */
void client_die(struct core *core, struct client *client);

/* A client that comes back lists its leases: begins, notes some of them, and then takes back those that were not listed, a
 * turn's work at a time, from page *cursor (0 at first) on. True: all was looked at. */
void client_list_begin(struct client *client);
void client_list(struct core *core, struct client *client, const uint32_t *spans, uint32_t count);
bool client_take_back(struct core *core, struct client *client, uint64_t *cursor);

/* A request that changes something is done only if its client has not given it up: see shm/ticket.h. `request` is its id, 0:
 * nobody waits for it. client_may() is asked when nothing stands in the way any more, right before the first store that has
 * an effect, so that who is told of an error needs no ticket; -ECANCELED is what a function returns when it says no. Behind
 * the last store client_did() notes that it was done.
 * die: between the two: as far as it has come, and said again by its client or never. */
static inline bool client_may(const struct core *core, const struct client *client, uint32_t request)
{
    return request == 0 || ticket_take(&core->heap, client->tag, request); /* [TK1] */
}
static inline void client_did(struct core *core, const struct client *client, uint32_t request)
{
    if (request)
        tag_set_done(&core->heap, client->tag, request);
}

/* Up to count tags for transactions of this client: their number, -EDQUOT, -EUSERS. */
int client_tx_tags(struct core *core, struct client *client, uint32_t count, uint32_t *out);

/* A client that comes back has listed the tags that it knows, a bit each: the others' TAGS were lost, so nobody uses them. */
void client_tx_take_back(struct core *core, struct client *client, const uint8_t *listed);

/* Commits a transaction, and with it moves a root (name "": none). 0; -EPERM not its tag, -EAGAIN the root is not
 * `expected`, -EINVAL `desired` is no published object, -EDQUOT, -ENOSPC, -ECANCELED. */
int client_tx_commit(struct core *core, struct client *client, uint32_t request, unsigned tag, const char *name,
                     uint64_t expected, uint64_t desired);

/* The client says that no word bears `tag` any more: it may run again. -EPERM if it was not committed. */
int client_tx_resolved(struct core *core, struct client *client, unsigned tag);

/* What it declares to the collector: in the map before this returns. -EINVAL */
int client_gc_mode(struct core *core, struct client *client, uint64_t mode);
int client_pins(struct core *core, struct client *client, uint64_t ref);
/* The same for a request: -EINVAL, -ECANCELED. */
int client_safepoint(struct core *core, struct client *client, uint32_t request, uint64_t mode);
int client_first_pins(struct core *core, struct client *client, uint32_t request, uint64_t ref);

/* mode ROOT_MODE_SET or _CAS. When it moves the root, the client's done becomes `request`, in the map before this
 * returns: after a restart both are as before, or both done. Errors as above, -ENOENT for removing what is not there,
 * -ECANCELED. */
int client_root(struct core *core, struct client *client, uint32_t request, const char *name, unsigned mode,
                uint64_t expected, uint64_t desired);

struct uid_account {
    uint32_t uid;
    uint32_t clients, roots, connections;
    uint32_t dying;        /* clients whose tags the pass has not freed yet */
    uint32_t transactions; /* tags for them, also those that the pass has not freed yet */
    uint64_t trim_sent_ns; /* when its clients were last asked to trim because of a limit; */
    uint64_t refused_ns, refused_progress; /* when one was refused for a limit, and core.progress then */
    struct trimmers trimmers; /* of turn.trimmers, its own */
    uint64_t unread; /* bytes of replies to INFO that its connections have not read */
    uint64_t charged_pages, charged_spans;
    uint64_t cutting_pages; /* that its clients are being granted */
    uint8_t spans_at[SPAN_CLASS_COUNT]; /* by class: 1 + the place of its lists in `spans`; 0: it never had any */
    uint8_t spans_count;
    struct user_spans *spans;
    UT_hash_handle hh;
};
/* NULL: it never had any. Good until the user's next span is cut. */
static inline struct user_spans *user_spans(const struct uid_account *account, unsigned span_class)
{
    return account->spans_at[span_class] ? &account->spans[account->spans_at[span_class] - 1] : NULL;
}
static inline bool user_has_nonempty(const struct uid_account *account, unsigned span_class)
{
    const struct user_spans *spans = user_spans(account, span_class);
    return spans && spans->nonempty_first != SPAN_END;
}

/* -EDQUOT if `more` on top of `used` is more than `most` (0: no limit), noted as the refusal of `limit`; else 0. */
static inline int limit_check(struct core *core, const char *limit, uint64_t most, uint64_t used, uint64_t more)
{
    if (most == 0 || used + more <= most)
        return 0;
    core->refusal = (struct refusal){limit, most, used, more};
    return -EDQUOT;
}

/* A connection of a user, client or not: counted in its account and in all. -EDQUOT, -ENOMEM.
 *
 * All the connections of a user may be looks, so a limit that is not given is that of clients and some for looks. Of those of
 * all, the last CONNECTIONS_SPARE (of a small number: half) are for root, and for users who have none: a few who take as many
 * as they may shut nobody out. */
enum { CONNECTIONS_SPARE = 32 };
uint32_t limit_user_connections(const struct limits *l); /* 0: no limit */
uint32_t limit_connections(const struct limits *l);
int account_connect(struct core *core, uint32_t uid);
void account_disconnect(struct core *core, uint32_t uid);

struct uid_account *account_of(struct core *core, uint32_t uid); /* NULL: out of memory */
void client_forget(struct core *core, unsigned tag); /* its tag bears no word any more */
const char *clients_check(struct core *core);

/* A look at the roots, so many slots at a time: NULL, or what is wrong. It is through when slot is root_slots. */
struct roots_look {
    uint32_t slot, roots;
    uint64_t changes;
};
const char *roots_check(struct core *core, struct roots_look *look, uint32_t slots);
void clients_rebuild(struct core *core);
void clients_free(struct core *core);

/* ---- reclaim.c ----------------------------------------------------------------------------------------------------------- */

int reclaim_init(struct core *core);
void reclaim_add(struct core *core, unsigned tag); /* its state in the map says what becomes of its words */
bool reclaim_turn(struct core *core, uint32_t words);

/* ---- sweep.c --------------------------------------------------------------------------------------------------------------- */

/* Looks at hints from the cursor on, counts what they point at, until `spans` spans or TURN_WORDS words were counted, `hints`
 * hint bytes seen, or the user (NULL: nobody in particular) has a nonempty span of class `want`. Returns the spans counted. */
uint32_t sweep_some(struct core *core, uint32_t spans, uint32_t hints, const struct uid_account *account, unsigned want);
void sweep_cycle(struct core *core); /* asks for one whole cycle, by turns */
bool sweep_turn(struct core *core);

#endif
