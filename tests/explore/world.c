#include "tests/explore/world.h"

#include "shm/root.h"
#include "tests/explore/wire.h"

enum { TAGS = 8, ROOTS = 4, UNITS = 2 + WORLD_PAGES };

struct core world_core;
struct heap world_heap;
struct world_board world_board;

static struct world_options options;
static struct arena *clients[WORLD_CLIENTS + 1];

/* the regions, as small as can be */
static struct {
    struct map_header header;
    struct tag tags[TAG_COUNT];
    uint32_t gens[ROOT_GENS];
    uint64_t touched[1];
    struct root roots[ROOTS];
    struct root_bucket buckets[ROOTS];
    uint64_t pages[WORLD_PAGES];
    struct span spans[WORLD_PAGES];
} map;
static struct {
    uint8_t hints[WORLD_PAGES];
    uint64_t tickets[TAGS];
    uint32_t hazards[HAZARD_COUNT];
    uint32_t turning[TAG_COUNT];
    uint16_t words[UNITS * UNIT_WORDS];
} words __attribute__((aligned(16)));
static uint8_t *objects;

/* who holds an object: a process; + HELD_PUBLISHED: it outlives it. 0: nobody */
enum { HELD_PUBLISHED = 64 };
static uint8_t held[WORLD_OBJECTS];

/* ---- the clients ----------------------------------------------------------------------------- */

static struct mcache *mcaches[EX_THREADS];
static unsigned mcache_count, mcache_process[EX_THREADS];

static void switched(void *tls)
{
    tls_mcaches[0] = tls ? tls : &no_mcache;
}

static void nothing(struct arena *a) /* a thread has nothing beside its mcache */
{
    (void)a;
}
struct mcache *mcache_get(struct arena *a)
{
    return mcache_of(a);
}
bool forked(const struct arena *a)
{
    (void)a;
    return false;
}
void threads_reap(bool everywhere)
{
    (void)everywhere;
}
struct thread *thread_self(void)
{
    return NULL;
}
uint32_t fork_generation(void)
{
    return 1;
}
bool thread_is_ending(struct thread *t, uint32_t index)
{
    (void)t, (void)index;
    return false;
}
pthread_mutex_t registry_lock;

/* client/alloc/thread.c's */
uint32_t mcaches_call(struct arena *a, const struct mcache *except, uint32_t serial)
{
    uint32_t open = 0;
    for (unsigned i = 0; i < mcache_count; i++) {
        struct mcache *mc = mcaches[i];
        uint32_t behind = serial - load_acquire(&mc->trim_seen);
        if (mc->arena != a || mc == except || behind == 0 || load_relaxed(&mc->budget_used) == 0)
            continue;
        store_relaxed(&mc->expect, NO_WORD);
        open += behind == 1;
    }
    return open;
}

/* No time passes: who waits for others gives up at once. */
int64_t now_ms(void)
{
    static int64_t now;
    return now += 1000;
}

arena_t *world_client(unsigned process)
{
    return clients[process];
}

static void on_bad_free(void *context, int error, const void *p, const char *message)
{
    (void)error, (void)p, (void)message;
    ++*(uint32_t *)context;
}

static uint32_t bad_frees[EX_THREADS]; /* by process, counted in the thread's own call */

static void client_setup(unsigned i)
{
    static uint8_t heap[WORLD_CLIENTS + 1][12288] __attribute__((aligned(16)));
    struct arena *a = clients[i];
    struct client *client;
    if (!a)
        a = clients[i] = aligned_alloc(64, (sizeof *a + 63) & ~63UL);
    memset(a, 0, sizeof *a);
    ex_heap(i, heap[i], options.transactions ? sizeof heap[i] : 2048);
    ex_heap_select(i);
    a->heap = world_heap;
    a->base = world_heap.base;
    a->heap_bytes = a->fast_bytes = world_heap.heap_bytes;
    a->fast_flags = ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED;
    a->pages = world_heap.pages;
    a->words = world_heap.words;
    size_class_by_eights(size_classes);
    a->classes = size_classes;
    a->index = 0;
    a->tls_at = (uint64_t)((char *)&tls_mcaches[0] - thread_pointer());
    a->conn.fd = 1;
    a->conn.epoch = world_heap.header->epoch;
    arena_on_error(a, on_bad_free, &bad_frees[i]);
    lease_init(a);
    large_init(a);
    tx_init(a);
    ex_heap_select(DAEMON);
    if (client_attach(&world_core, &(struct tag){.pid = i, .uid = 1}, &client) < 0)
        ex_violation("no client");
    a->tag = client->tag;
    for (unsigned n = 0; options.transactions && n < 2; n++) {
        a->tx_ready_count = (uint32_t)client_tx_tags(&world_core, client, 2, a->tx_ready);
    }
    wire_connect(i);
    ex_memory(&a->central[WORLD_CLASS], sizeof a->central[0]);
    ex_memory(&a->keep, sizeof a->keep);
    ex_memory(&a->conn.lock, sizeof a->conn.lock);
    ex_memory(&a->conn.fd, offsetof(struct connection, ahead) - offsetof(struct connection, fd));
    ex_memory(&a->conn.in, sizeof a->conn.in);
    ex_memory(a->conn.list, WIRE_LIST * sizeof a->conn.list[0]);
    ex_memory(a->conn.space.list, WIRE_LIST * sizeof a->conn.space.list[0]);
    ex_memory(&a->conn.ahead,
              offsetof(struct ahead, list) + WIRE_LIST * sizeof a->conn.ahead.list[0]);
    ex_memory(&a->returns, sizeof a->returns);
    ex_memory(a->tx_ready, 4 * sizeof a->tx_ready[0]);
    ex_memory(&a->tx_ready_count, sizeof a->tx_ready_count);
    ex_memory(a->tx_resolved, 4 * sizeof a->tx_resolved[0]);
    ex_memory(&a->tx_resolved_count, sizeof a->tx_resolved_count);
    ex_private(
        &a->keep,
        sizeof a->keep); /* figures, by atomic additions: their order changes nothing but bounds */
    ex_private(a->tx_ready, 4 * sizeof a->tx_ready[0]);
    ex_memory(&a->tx_clean, sizeof a->tx_clean);
    ex_memory(&a->tx_lock, sizeof a->tx_lock);
    ex_memory(&a->tx_open, sizeof a->tx_open);
    ex_memory(&a->tx_late, sizeof a->tx_late);
    ex_memory(&a->tx_freed_by_others, sizeof a->tx_freed_by_others);
    ex_private(&a->tx_clean, sizeof a->tx_clean);
    ex_private(&a->tx_freed_by_others, sizeof a->tx_freed_by_others);
    ex_private(&a->fast_bytes, sizeof a->fast_bytes);
    ex_private(&a->fast_flags, sizeof a->fast_flags);
    ex_private(&a->limbo, sizeof a->limbo);
    ex_private(&a->late, sizeof a->late);
    if (options.single[i]) {
        ex_private(&a->conn.lock, sizeof a->conn.lock);
        ex_private(&a->tx_lock, sizeof a->tx_lock);
        ex_private(&a->central[WORLD_CLASS], sizeof a->central[0]);
        ex_private(&a->returns, sizeof a->returns);
    }
    ex_private(a->central, WORLD_CLASS * sizeof a->central[0]); /* classes that nobody uses */
    ex_private(&a->central[WORLD_CLASS + 1], (255 - WORLD_CLASS) * sizeof a->central[0]);
    ex_memory(&a->large.lock, sizeof a->large.lock);
    ex_memory(a->large.bins[0], WORLD_PAGES * sizeof a->large.bins[0][0]); /* none is larger */
    ex_memory(&a->large.oldest, sizeof a->large - offsetof(struct large_cache, oldest));
    ex_private(&a->large, sizeof a->large);
}

int world_thread(const char *name, unsigned process, void (*fn)(void *), void *argument)
{
    if (!mcaches[mcache_count])
        mcaches[mcache_count] = (mmap)(NULL, MCACHE_BYTES, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mcache_process[mcache_count] = process;
    struct mcache *mc = mcaches[mcache_count++];
    mcache_init(mc, clients[process], 0);
    uint64_t at = (sizeof *mc + 4095) & ~4095ULL; /* as mcache.c lays out its slots */
    for (unsigned c = 2; c < WORLD_CLASS; c++) {
        uint32_t size = class_table[c].size, slots = size ? MAGAZINE_BYTES / size : 0;
        at += ((slots > MAGAZINE_SLOTS ? MAGAZINE_SLOTS : slots) + 1) * sizeof(struct arena_slot);
    }
    memset((uint8_t *)mc + at, 0, 17 * sizeof(struct arena_slot));
    ex_memory(mc, offsetof(struct mcache, magazines));
    ex_private(mc, offsetof(struct mcache, magazines));
    ex_memory(&mc->magazines[WORLD_CLASS], sizeof mc->magazines[0]);
    ex_memory(&mc->bases[WORLD_CLASS], sizeof mc->bases[0]);
    ex_memory((uint8_t *)mc + at, 17 * sizeof(struct arena_slot));
    return ex_thread(name, process, fn, argument, mc);
}

void world_become(unsigned nth)
{
    switched(mcaches[nth]);
    ex_heap_select(mcache_process[nth]);
}

/* ---- what the threads do --------------------------------------------------------------------- */

unsigned world_index(const void *p)
{
    uint64_t at = (uint64_t)((const uint8_t *)p - objects);
    return (unsigned)((at >> PAGE_SHIFT) * 3 + at % PAGE_SIZE / WORLD_SIZE);
}

uint16_t world_word(const void *p)
{
    struct object object;
    return object_find(&world_heap, (uint64_t)((const uint8_t *)p - objects), &object)
               ? *object.word
               : WORD_FREE;
}

void world_holds(const void *p, unsigned process, bool published)
{
    held[world_index(p)] = (uint8_t)(process | (published ? HELD_PUBLISHED : 0));
}

void *world_alloc(unsigned process)
{
    void *p = arena_alloc(clients[process], WORLD_SIZE);
    if (!p)
        return NULL;
    if (held[world_index(p)])
        ex_violation("object %u is handed out to client %u, and %u holds it", world_index(p),
                     process, held[world_index(p)] % HELD_PUBLISHED);
    held[world_index(p)] = (uint8_t)process;
    return p;
}

bool world_free_try(unsigned process, void *p)
{
    uint32_t before = bad_frees[process];
    arena_free(clients[process], p);
    bool refused = bad_frees[process] != before;
    bad_frees[process] = before;
    return !refused;
}

void world_free(unsigned process, void *p)
{
    uint8_t was = held[world_index(p)];
    held[world_index(p)] = 0;
    if (!world_free_try(process, p)) {
        held[world_index(p)] = was;
        ex_violation("the free of object %u by client %u is refused", world_index(p), process);
    }
}

void world_killed(unsigned process)
{
    if (process == DAEMON) {
        daemon_killed();
        return;
    }
    for (unsigned i = 0; i < WORLD_OBJECTS; i++)
        if (held[i] == process)
            held[i] = 0;
}

/* ---- setup ----------------------------------------------------------------------------------- */

void world_setup(const struct world_options *o)
{
    static uint8_t daemon_heap[4096] __attribute__((aligned(16)));
    options = *o;
    if (!objects)
        objects = (mmap)(NULL, WORLD_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(&map, 0, sizeof map);
    memset(&words, 0, sizeof words);
    memset(held, 0, sizeof held);
    memset(&world_board, 0, sizeof world_board);
    memset(&world_core, 0, sizeof world_core);
    memset(bad_frees, 0, sizeof bad_frees);
    mcache_count = 0;
    ex_switched = switched;
    hooks.trim = nothing;
    world_heap = (struct heap){.base = objects,
                               .heap_bytes = WORLD_PAGES << PAGE_SHIFT,
                               .header = &map.header,
                               .tags = map.tags,
                               .root_gens = map.gens,
                               .root_touched = map.touched,
                               .roots = map.roots,
                               .root_buckets = map.buckets,
                               .pages = map.pages,
                               .spans = map.spans,
                               .hints = words.hints,
                               .hazards = words.hazards,
                               .turning = words.turning,
                               .tickets = words.tickets,
                               .words = words.words,
                               .page_count = WORLD_PAGES,
                               .unit_count = UNITS,
                               .root_slots = ROOTS};
    for (int i = 1; i < WORLD_PAGES; i++)
        map.pages[i] = PAGE_WARM;
    map.header.top = WORLD_PAGES;
    ex_heap(DAEMON, daemon_heap, sizeof daemon_heap);
    ex_heap_select(DAEMON);
    daemon_start();
    ex_memory(&map.header, sizeof map.header);
    ex_memory(map.tags, TAGS * sizeof map.tags[0]);
    ex_memory(map.touched, sizeof map - offsetof(typeof(map), touched));
    ex_memory(&words, sizeof words);
    ex_memory(held, sizeof held);
    ex_memory(&world_board, sizeof world_board);
    ex_memory(&world_core, offsetof(struct core, central));
    ex_memory(&world_core.central[WORLD_CLASS], sizeof world_core.central[0]);
    ex_memory(&world_core.central[CLASS_LARGE], sizeof world_core.central[0]);
    ex_memory(&world_core.dspans, sizeof world_core - offsetof(struct core, dspans));
    wire_setup(o);
    ex_memory(bad_frees, sizeof bad_frees);
    ex_private(&map.header.collecting, sizeof map.header.collecting); /* nothing collects here */
    ex_private(words.turning, sizeof words.turning);
    ex_owned(&map, sizeof map,
             DAEMON); /* it alone writes the map, so its own loads of it are no points */
    for (unsigned i = 1; i <= o->clients; i++)
        client_setup(i);
    if (!o->give_ups) /* nobody takes one back */
        ex_private(words.tickets, sizeof words.tickets);
    if (o->quiet_map)
        ex_private(map.pages, sizeof map - offsetof(typeof(map), pages));
    else
        ex_private(map.gens, sizeof map.gens);
    if (o->daemon)
        daemon_run();
}

/* ---- checks ---------------------------------------------------------------------------------- */

void world_invariant(void)
{
    for (uint64_t page = 1; page < WORLD_PAGES; page++) {
        struct span_info span;
        if (!span_at(&world_heap, page, &span))
            continue;
        for (uint32_t i = 0; i < span.objects; i++) {
            unsigned tag = word_tag(span.words[i]);
            if (tag && (tag >= TAGS || map.tags[tag].state == TAG_FREE))
                ex_violation("a word of page %u bears tag %u, which nobody has", (unsigned)page,
                             tag);
        }
        uint16_t lessee = map.spans[page].lessee;
        if (lessee && map.tags[lessee].state != TAG_CLIENT &&
            map.tags[lessee].state != TAG_CLIENT_DYING)
            ex_violation("page %u is leased to tag %u, which nobody has", (unsigned)page, lessee);
    }
}

/* Let go, and the daemon is not told yet: its queue took no more, or it is not connected. */
static bool is_queued(unsigned client, uint64_t page)
{
    const struct returns *r = &clients[client]->returns;
    uint32_t at = r->first;
    while (at != LEASE_END && at != page)
        at = clients[client]->leases[at].next; /* its objects are small */
    return at == page;
}

static void check_leases(void)
{
    for (uint64_t page = 1; page < WORLD_PAGES; page++) {
        struct span_info span;
        if (!span_at(&world_heap, page, &span))
            continue;
        for (unsigned i = 1; i <= options.clients; i++) {
            bool his = map.spans[page].lessee == clients[i]->tag,
                 knows = clients[i]->leases[page].list != LEASE_NONE;
            if (!ex_is_dead(i) && world_is_connected(i) && his != (knows || is_queued(i, page)))
                ex_violation("page %u: client %u %s, the map says %s", (unsigned)page, i,
                             knows ? "has it leased" : "has not", his ? "it has" : "it has not");
            if (!ex_is_dead(i) && !world_is_connected(i) && knows && !his)
                ex_violation("page %u: client %u has it leased, the map says it has not",
                             (unsigned)page, i);
        }
    }
}

/* What a live client has cached is in a magazine, where it finds it again. */
static void check_magazines(void)
{
    for (unsigned c = 1; c <= options.clients; c++) {
        uint32_t cached = 0, in_magazines = 0;
        for (unsigned i = 0; i < mcache_count; i++)
            if (mcache_process[i] == c)
                in_magazines += (uint32_t)(mcaches[i]->magazines[WORLD_CLASS].top -
                                           mcaches[i]->bases[WORLD_CLASS]);
        in_magazines += clients[c]->central[WORLD_CLASS].stash_count;
        for (unsigned i = 0; i < UNITS * UNIT_WORDS; i++)
            cached += words.words[i] == WORD_CACHED(clients[c]->tag);
        if (!ex_is_dead(c) && cached != in_magazines)
            ex_violation("client %u has cached %u objects, and %u are in its magazines", c, cached,
                         in_magazines);
    }
}

void world_final(void)
{
    const char *why = clients_check(&world_core);
    if (!why)
        why = roots_check(&world_core, &(struct roots_look){0}, world_heap.root_slots);
    if (why)
        ex_violation("%s", why);
    for (unsigned i = 1; i <= options.clients; i++)
        if (ex_is_dead(i) && options.daemon && world_core.clients[clients[i]->tag])
            ex_violation("dead client %u was not reclaimed", i);
    for (unsigned i = 1; i <= options.clients; i++)
        if (!ex_is_dead(i) && world_is_connected(i) && !world_was_full(i) && returns_pending(&clients[i]->returns))
            ex_violation("client %u has let go, and nobody tells the daemon", i);
    check_leases();
    check_magazines();
    ex_heap_select(DAEMON);
    sweep_cycle(&world_core);
    while (core_turn(&world_core))
        ;
    for (uint64_t page = 1; page < WORLD_PAGES && !why; page++) {
        struct span_info span;
        if (!span_at(&world_heap, page, &span)) {
            why = mheap_check(&world_core.mheap, page, page + 1);
            continue;
        }
        why = mcentral_check(&world_core, page);
        uint32_t free_count = span_count_free(&span);
        if (!map.spans[page].lessee &&
            (free_count == span.objects ||
             (free_count && world_core.dspans[page].list != LIST_NONEMPTY)))
            ex_violation("page %u: %u FREE objects that nobody can have again", (unsigned)page,
                         free_count);
        for (uint32_t i = 0; i < span.objects; i++)
            for (unsigned c = 1; c <= options.clients; c++)
                if (ex_is_dead(c) && options.daemon && word_tag(span.words[i]) == clients[c]->tag)
                    ex_violation("page %u: a word bears the tag of dead client %u", (unsigned)page,
                                 c);
    }
    if (why)
        ex_violation("%s", why);
    world_invariant();
}

struct world_census world_census(void)
{
    struct world_census n = {0, 0, 0, 0};
    for (uint64_t page = 1; page < WORLD_PAGES; page++) {
        struct span_info span;
        if (!span_at(&world_heap, page, &span))
            continue;
        for (uint32_t i = 0; i < span.objects; i++) {
            uint16_t word = span.words[i];
            if (word == WORD_FREE)
                n.free++;
            else if (word == WORD_SHARED ||
                     (word_is_owned(word) && tag_is_committed(&world_heap, word_tag(word))))
                n.shared++;
            else if (word_is_cached(word))
                n.cached++;
            else
                n.owned++;
        }
    }
    return n;
}
