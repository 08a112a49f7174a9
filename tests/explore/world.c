#include "tests/explore/world.h"

#include <stdio.h>

#include "shm/root.h"

enum { TAGS = 8, ROOTS = 4, UNITS = 2 + WORLD_PAGES, QUEUE = 6, LIST = 8, DAEMON = 0 };

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
    uint64_t pages[WORLD_PAGES];
    struct span spans[WORLD_PAGES];
} map;
static struct {
    uint8_t hints[WORLD_PAGES];
    uint16_t words[UNITS * UNIT_WORDS];
} words __attribute__((aligned(16)));
static uint8_t *objects;

/* who holds an object: a process; + HELD_PUBLISHED: it outlives it. 0: nobody */
enum { HELD_PUBLISHED = 64 };
static uint8_t held[WORLD_OBJECTS];

/* ---- the wire -------------------------------------------------------------------------------- */

struct packet {
    uint32_t type, id, epoch, span_class, pages, tag, flags, error, list_count;
    uint32_t pad;
    uint32_t list[LIST];
    uint64_t expected, desired;
    char name[8];
};

static struct wire {
    uint32_t up;      /* connected */
    uint32_t greeted; /* the daemon's: HELLO was served, by this daemon */
    uint32_t gone;    /* the daemon's: it has seen that the process is dead, or it said goodbye */
    uint32_t in_count, out_count;
    uint32_t serving; /* the daemon's: id of the request that it is at */
    uint32_t listed;   /* of RESUME, a bit a page */
    struct packet in[QUEUE], out[QUEUE]; /* to the daemon, to the client */
} wires[WORLD_CLIENTS + 1];

static void packet_of(const struct msg *m, uint32_t type, struct packet *p)
{
    memset(p, 0, sizeof *p);
    p->type = type;
    p->epoch = m->epoch;
    if (type == MSG_LEASE || type == MSG_LARGE) {
        p->span_class = m->span_class;
        p->pages = m->pages;
    }
    if (type == MSG_LEASE || type == MSG_RELEASE || type == MSG_RESUME || type == MSG_TX_COMMIT ||
        type == MSG_GRANT || type == MSG_TAGS) {
        p->list_count = m->list_count;
        if (p->list_count > LIST)
            ex_violation("the world's packets are too short for a list of %u", m->list_count);
        memcpy(p->list, m->list, (p->list_count < LIST ? p->list_count : LIST) * sizeof *p->list);
    }
    if (type == MSG_RESUME)
        p->flags = m->flags;
    if (type == MSG_TX_COMMIT || type == MSG_HELLO)
        p->tag = m->tag;
    if (type == MSG_TX_COMMIT) {
        p->expected = m->expected;
        p->desired = m->desired;
        memcpy(p->name, m->name, sizeof p->name - 1);
    }
}

static void pop(struct packet *queue, uint32_t *count)
{
    memmove(queue, queue + 1, (*count - 1) * sizeof *queue);
    memset(&queue[--*count], 0, sizeof *queue);
}

static bool has_room(void *w)
{
    return ((struct wire *)w)->in_count < QUEUE || !((struct wire *)w)->up;
}
static bool has_answer(void *w)
{
    return ((struct wire *)w)->out_count || !((struct wire *)w)->up;
}

static void serve(unsigned i);

enum { ID_CALL = 1, ID_AHEAD }; /* at most one of each is on its way, so numbers need not grow */

/* client/conn.c's sending and receiving; -EPIPE: lost. */
static int send_out(struct arena *a, uint32_t type, uint32_t id)
{
    struct wire *w = &wires[ex_self()];
    a->conn.out.epoch = a->conn.epoch;
    ex_wait(has_room, w);
    if (!w->up)
        return -EPIPE;
    packet_of(&a->conn.out, type, &w->in[w->in_count]);
    w->in[w->in_count++].id = id;
    if (!ex_running()) {
        unsigned self = ex_self();
        ex_heap_select(DAEMON);
        serve(self);
        ex_heap_select(self);
    }
    return 0;
}

static int receive_in(struct arena *a, uint32_t id)
{
    struct wire *w = &wires[ex_self()];
    struct msg *in = &a->conn.in;
    struct ahead *ahead = &a->conn.ahead;
    for (;;) {
        ex_wait(has_answer, w);
        if (!w->out_count)
            return -EPIPE;
        struct packet p = w->out[0];
        pop(w->out, &w->out_count);
        in->type = p.type;
        in->list_count = p.list_count;
        memcpy(in->list, p.list, sizeof p.list);
        in->flags = p.flags;
        in->epoch = p.epoch;
        if (ahead->id && p.id == ahead->id) { /* what was asked for ahead */
            ahead->arrived = true;
            ahead->error = p.type == MSG_ERROR ? (int)p.error : 0;
            ahead->flags = p.flags;
            ahead->count = p.list_count;
            memcpy(ahead->list, p.list, sizeof p.list);
            if (p.id == id)
                return -ahead->error;
            continue;
        }
        if (p.id == id)
            return p.type == MSG_ERROR ? -(int)p.error : 0;
    }
}

static int exchange(struct arena *a, uint32_t type)
{
    int rc = send_out(a, type, ID_CALL);
    return rc < 0 ? rc : receive_in(a, ID_CALL);
}

static void drop(struct arena *a)
{
    a->conn.fd = -1;
    a->conn.ahead.id = 0;
}

void conn_ask_ahead(struct arena *a)
{
    struct connection *c = &a->conn;
    if (c->fd < 0 || c->ahead.id)
        return;
    if (send_out(a, MSG_LEASE, ID_AHEAD) < 0) {
        drop(a);
        return;
    }
    c->ahead.id = ID_AHEAD;
    c->ahead.span_class = c->out.span_class;
    c->ahead.arrived = false;
}

int conn_ahead(struct arena *a, unsigned span_class)
{
    struct connection *c = &a->conn;
    if (!c->ahead.id || c->ahead.span_class != span_class)
        return -ENOENT;
    int rc = c->ahead.arrived ? -c->ahead.error : receive_in(a, c->ahead.id);
    if (!c->ahead.arrived)
        drop(a);
    c->ahead.id = 0;
    return rc;
}

void conn_lock(struct arena *a)
{
    pthread_mutex_lock(&a->conn.lock);
}
void conn_unlock(struct arena *a)
{
    pthread_mutex_unlock(&a->conn.lock);
}
const char *socket_path(const char *given, char *buf, size_t capacity)
{
    return (void)buf, (void)capacity, given;
}

static int reconnect(struct arena *a)
{
    struct connection *c = &a->conn;
    struct wire *w = &wires[ex_self()];
    for (;;) {
        uint64_t cursor = 0;
        drop(a);
        w->up = 1;
        w->greeted = 0;
        memset(w->in, 0, sizeof w->in);
        memset(w->out, 0, sizeof w->out);
        w->in_count = w->out_count = 0;
        c->out.tag = a->tag;
        int rc = exchange(a, MSG_HELLO);
        if (rc == 0)
            c->epoch = c->in.epoch;
        for (bool last = false; rc == 0 && !last;) {
            /* as short packets as can be, so that a crash may come between two */
            c->out.list_count = lease_list(a, &cursor, c->out.list, 1);
            last = cursor >= a->heap.page_count;
            c->out.flags = last ? RESUME_LAST : 0;
            rc = exchange(a, MSG_RESUME);
        }
        c->fd = rc == 0 ? 1 : -1;
        if (rc != -EPIPE)
            return rc;
    }
}

/* client/conn.c's, without its clock. */
int conn_call(struct arena *a, uint32_t type, uint32_t expect)
{
    struct connection *c = &a->conn;
    (void)expect;
    for (;;) {
        int rc = c->fd >= 0 ? exchange(a, type) : -EPIPE;
        if (rc != -EPIPE)
            return rc;
        struct packet kept;
        packet_of(&c->out, type, &kept);
        rc = reconnect(a);
        c->out.span_class = kept.span_class;
        c->out.pages = kept.pages;
        c->out.tag = kept.tag;
        c->out.list_count = kept.list_count;
        memcpy(c->out.list, kept.list, sizeof kept.list);
        if (rc < 0)
            return rc;
        if (type == MSG_LEASE || type == MSG_LARGE)
            c->out.list_count = 0;
        if (type == MSG_TX_COMMIT && tag_state(&a->heap, c->out.tag) == TAG_TX_COMMITTED)
            return 0;
    }
}

int conn_tell(struct arena *a, uint32_t type)
{
    if (a->conn.fd < 0)
        return -ENOTCONN;
    int rc = send_out(a, type, 0);
    if (rc < 0)
        drop(a);
    return rc;
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static uint32_t sweeps_left;

static struct client *client_of(unsigned i)
{
    return clients[i]->tag < TAG_COUNT ? world_core.clients[clients[i]->tag] : NULL;
}

static void answer(struct wire *w, const struct packet *p)
{
    if (!w->up || w->out_count == QUEUE)
        return;
    w->out[w->out_count] = *p;
    w->out[w->out_count++].id = w->serving;
}
static void answer_ok(struct wire *w)
{
    answer(w, &(struct packet){.type = MSG_OK});
}
static void answer_error(struct wire *w, int rc)
{
    answer(w, &(struct packet){.type = MSG_ERROR, .error = (uint32_t)-rc});
}

static void on_hello(struct wire *w, struct client *client)
{
    if (!client || client->state == CLIENT_DYING) {
        answer_error(w, -ESTALE);
        return;
    }
    client->state = CLIENT_LIVE;
    client->resuming = true;
    w->greeted = 1;
    w->listed = 0;
    answer(w, &(struct packet){.type = MSG_WELCOME, .epoch = world_heap.header->epoch});
}

static void on_resume(struct wire *w, struct client *client, const struct packet *p)
{
    for (uint32_t i = 0; i < p->list_count; i++)
        w->listed |= 1u << p->list[i];
    bool last = (p->flags & RESUME_LAST) != 0;
    if (ex_mutant() && ex_mutant()->mutation == MUTANT_BACKWARDS &&
        strcmp(ex_mutant()->function, "on_resume") == 0)
        last = true; /* takes back before all is listed */
    if (last) {
        const uint8_t listed[4] = {(uint8_t)w->listed, (uint8_t)(w->listed >> 8)};
        uint64_t cursor = 0;
        while (!client_take_back(&world_core, client, listed, &cursor))
            ;
        client->resuming = (p->flags & RESUME_LAST) == 0;
    }
    answer_ok(w);
}

static void take_back_list(struct wire *w, struct client *client, const struct packet *p)
{
    if (p->epoch != world_heap.header->epoch)
        return;
    for (uint32_t i = 0; i < p->list_count; i++)
        if (mcentral_uncache_span(&world_core, client, p->list[i]) < 0)
            ex_violation("client %u gave back span %u, which it had not leased",
                         (unsigned)(w - wires), p->list[i]);
}

static void on_lease(struct wire *w, struct client *client, const struct packet *p)
{
    struct packet grant = {.type = MSG_GRANT, .epoch = world_heap.header->epoch};
    bool fresh;
    take_back_list(w, client, p);
    if (p->epoch != world_heap.header->epoch) {
        answer_error(w, -ESTALE);
        return;
    }
    int count =
        mcentral_cache_span(&world_core, client, p->span_class, p->pages, grant.list, LIST, &fresh);
    if (count < 0) {
        answer_error(w, count == -EAGAIN ? -ENOMEM : count);
        return;
    }
    grant.list_count = (uint32_t)count;
    grant.flags = fresh ? GRANT_FRESH : 0;
    answer(w, &grant);
}

static void on_commit(struct wire *w, struct client *client, const struct packet *p)
{
    for (uint32_t i = 0; i < p->list_count; i++)
        if (client_tx_resolved(&world_core, client, p->list[i]) < 0)
            ex_violation("a transaction was resolved that may not be");
    int rc = client_tx_commit(&world_core, client, p->tag, p->name, p->expected, p->desired);
    if (rc < 0)
        answer_error(w, rc);
    else
        answer_ok(w);
}

static void serve(unsigned i)
{
    struct wire *w = &wires[i];
    struct packet p = w->in[0];
    struct client *client = client_of(i);
    pop(w->in, &w->in_count);
    w->serving = p.id;
    if (p.type == MSG_HELLO)
        on_hello(w, client);
    else if (!w->greeted || !client || (client->resuming && p.type != MSG_RESUME))
        answer_error(w, -EPERM);
    else if (p.type == MSG_RESUME)
        on_resume(w, client, &p);
    else if (p.type == MSG_LEASE)
        on_lease(w, client, &p);
    else if (p.type == MSG_RELEASE)
        take_back_list(w, client, &p);
    else if (p.type == MSG_TX_COMMIT)
        on_commit(w, client, &p);
    else if (p.type == MSG_MODE)
        answer_ok(w);
    else
        ex_violation("a packet of type %u", p.type);
}

static void see_death(unsigned i)
{
    struct client *client = client_of(i);
    wires[i].gone = 1;
    wires[i].up = 0;
    wires[i].in_count = 0;
    memset(wires[i].in, 0, sizeof wires[i].in);
    if (client)
        client_die(&world_core, client);
}

enum { EVENT_SERVE, EVENT_DEATH = 8, EVENT_TURN = 16, EVENT_SWEEP };

static unsigned events(unsigned *out)
{
    unsigned n = 0;
    for (unsigned i = 1; i <= options.clients; i++) {
        if (wires[i].gone)
            continue;
        if (wires[i].in_count && wires[i].up)
            out[n++] = EVENT_SERVE + i;
        if (ex_is_dead(i))
            out[n++] = EVENT_DEATH + i;
    }
    if (world_core.reclaim.running || world_core.sweep_to_go)
        out[n++] = EVENT_TURN;
    if (sweeps_left && !world_core.sweep_to_go)
        out[n++] = EVENT_SWEEP;
    return n;
}

static bool has_events(void *unused)
{
    unsigned list[16];
    (void)unused;
    return events(list) != 0;
}

static void daemon_main(void *unused)
{
    (void)unused;
    for (;;) {
        unsigned list[16];
        ex_wait(has_events, NULL);
        unsigned what = list[ex_choose(events(list))];
        if (what == EVENT_SWEEP) {
            sweeps_left--;
            sweep_cycle(&world_core);
        } else if (what == EVENT_TURN)
            core_turn(&world_core);
        else if (what > EVENT_DEATH)
            see_death(what - EVENT_DEATH);
        else
            serve(what - EVENT_SERVE);
    }
}

static int no_growth(void *context, uint64_t first, uint64_t pages)
{
    return (void)context, (void)first, (void)pages, -ENOMEM;
}
static uint64_t no_allowance(void *context)
{
    return (void)context, 0;
}
static int no_units(void *context, uint64_t first, uint64_t units)
{
    return (void)context, (void)first, (void)units, 0;
}

static void start_core(void)
{
    static const struct limits none;
    const struct backing backing = {NULL, no_growth, no_allowance, no_growth, no_units};
    char why[256];
    int rc = core_start(&world_core, &world_heap, &backing, &none, 1, why);
    if (rc < 0)
        ex_violation("the daemon does not start: %s", why);
}

/* After a crash: server_start() and connections_find_dead(). */
static void daemon_again(void *unused)
{
    (void)unused;
    start_core();
    for (unsigned i = 1; i <= options.clients; i++) {
        struct client *client = client_of(i);
        if (client && client->state == CLIENT_DETACHED && ex_is_dead(i)) {
            wires[i].gone = 1;
            client_die(&world_core, client);
        }
    }
    daemon_main(NULL);
}

static int daemon_thread;

void world_killed(unsigned process)
{
    if (process != DAEMON) {
        for (unsigned i = 0; i < WORLD_OBJECTS; i++)
            if (held[i] == process)
                held[i] = 0;
        return;
    }
    memset(&world_core, 0, sizeof world_core);
    ex_heap_reset(DAEMON);
    for (unsigned i = 1; i <= options.clients; i++) { /* what it had answered can still be read */
        wires[i].up = 0;
        wires[i].greeted = 0;
        wires[i].in_count = 0;
        memset(wires[i].in, 0, sizeof wires[i].in);
    }
    ex_restart(daemon_thread, daemon_again, NULL);
}

/* ---- the clients ----------------------------------------------------------------------------- */

static struct mcache *mcaches[EX_THREADS];
static unsigned mcache_count, mcache_process[EX_THREADS];

static void switched(void *tls)
{
    tls_mcaches[0] = tls ? tls : &no_mcache;
}

struct mcache *mcache_get(struct arena *a)
{
    return mcache_of(a);
}
uint32_t fork_generation;
pthread_mutex_t registry_lock;

bool world_is_connected(unsigned process)
{
    return wires[process].up;
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
    a->heap_bytes = world_heap.heap_bytes;
    a->pages = world_heap.pages;
    a->words = world_heap.words;
    a->index = 0;
    a->tls_at = (uint64_t)((char *)&tls_mcaches[0] - thread_pointer());
    a->conn.fd = 1;
    a->conn.epoch = world_heap.header->epoch;
    arena_on_error(a, on_bad_free, &bad_frees[i]);
    lease_init(a);
    large_init(a);
    ex_heap_select(DAEMON);
    if (client_attach(&world_core, &(struct tag){.pid = i, .uid = 1}, &client) < 0)
        ex_violation("no client");
    a->tag = client->tag;
    for (unsigned n = 0; options.transactions && n < 2; n++) {
        a->tx_ready_count = (uint32_t)client_tx_tags(&world_core, client, 2, a->tx_ready);
    }
    wires[i] = (struct wire){.up = 1, .greeted = 1};
    ex_memory(&a->central[WORLD_CLASS], sizeof a->central[0]);
    ex_memory(&a->keep, sizeof a->keep);
    ex_memory(&a->conn.lock, sizeof a->conn.lock);
    ex_memory(&a->conn.fd, offsetof(struct connection, ahead) - offsetof(struct connection, fd));
    for (struct msg *m = &a->conn.in; m; m = m == &a->conn.in ? &a->conn.out : NULL) {
        ex_memory(m, offsetof(struct msg, heap_id));
        ex_memory(&m->tag, offsetof(struct msg, list) + LIST * sizeof m->list[0] -
                               offsetof(struct msg, tag));
        ex_memory(&m->name, 8);
        ex_memory(&m->expected, 2 * sizeof m->expected);
    }
    ex_memory(&a->conn.ahead, offsetof(struct ahead, list) + LIST * sizeof a->conn.ahead.list[0]);
    ex_memory(&a->trim_serial, offsetof(struct arena, pins) - offsetof(struct arena, trim_serial));
    ex_memory(a->tx_ready, 4 * sizeof a->tx_ready[0]);
    ex_memory(&a->tx_ready_count, sizeof a->tx_ready_count);
    ex_memory(a->tx_resolved, 4 * sizeof a->tx_resolved[0]);
    ex_memory(&a->tx_resolved_count, sizeof a->tx_resolved_count);
    ex_private(
        &a->keep,
        sizeof a->keep); /* figures, by atomic additions: their order changes nothing but bounds */
    ex_private(&a->trim_serial, offsetof(struct arena, pins) - offsetof(struct arena, trim_serial));
    ex_private(a->tx_ready, 4 * sizeof a->tx_ready[0]);
    if (options.single[i]) {
        ex_private(&a->conn.lock, sizeof a->conn.lock);
        ex_private(&a->central[WORLD_CLASS], sizeof a->central[0]);
    }
    ex_private(a->central, WORLD_CLASS * sizeof a->central[0]); /* classes that nobody uses */
    ex_private(&a->central[WORLD_CLASS + 1], (255 - WORLD_CLASS) * sizeof a->central[0]);
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
        at += ((slots > MAGAZINE_SLOTS ? MAGAZINE_SLOTS : slots) + 1) * sizeof(struct slot);
    }
    memset((uint8_t *)mc + at, 0, 17 * sizeof(struct slot));
    ex_memory(mc, offsetof(struct mcache, magazines));
    ex_memory(&mc->magazines[WORLD_CLASS], sizeof mc->magazines[0]);
    ex_memory(&mc->bases[WORLD_CLASS], sizeof mc->bases[0]);
    ex_memory((uint8_t *)mc + at, 17 * sizeof(struct slot));
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
    memset(wires, 0, sizeof wires);
    memset(bad_frees, 0, sizeof bad_frees);
    mcache_count = 0;
    sweeps_left = o->sweeps;
    ex_switched = switched;
    world_heap = (struct heap){.base = objects,
                               .heap_bytes = WORLD_PAGES << PAGE_SHIFT,
                               .header = &map.header,
                               .tags = map.tags,
                               .root_gens = map.gens,
                               .root_touched = map.touched,
                               .roots = map.roots,
                               .pages = map.pages,
                               .spans = map.spans,
                               .hints = words.hints,
                               .words = words.words,
                               .page_count = WORLD_PAGES,
                               .unit_count = UNITS,
                               .root_slots = ROOTS};
    for (int i = 1; i < WORLD_PAGES; i++)
        map.pages[i] = PAGE_WARM;
    map.header.top = WORLD_PAGES;
    ex_heap(DAEMON, daemon_heap, sizeof daemon_heap);
    ex_heap_select(DAEMON);
    start_core();
    ex_memory(&map.header, sizeof map.header);
    ex_memory(map.tags, TAGS * sizeof map.tags[0]);
    ex_memory(map.touched, sizeof map - offsetof(typeof(map), touched));
    ex_memory(&words, sizeof words);
    ex_memory(held, sizeof held);
    ex_memory(&world_board, sizeof world_board);
    ex_memory(&world_core, offsetof(struct core, central));
    ex_memory(&world_core.central[WORLD_CLASS], sizeof world_core.central[0]);
    ex_memory(&world_core.dspans, sizeof world_core - offsetof(struct core, dspans));
    ex_memory(wires, sizeof wires[0] * (o->clients + 1));
    ex_memory(bad_frees, sizeof bad_frees);
    ex_memory(&sweeps_left, sizeof sweeps_left);
    ex_owned(&map, sizeof map,
             DAEMON); /* it alone writes the map, so its own loads of it are no points */
    for (unsigned i = 1; i <= o->clients; i++)
        client_setup(i);
    if (o->quiet_map)
        ex_private(map.pages, sizeof map - offsetof(typeof(map), pages));
    else
        ex_private(map.gens, sizeof map.gens);
    if (o->daemon)
        daemon_thread = ex_thread("daemon", DAEMON, daemon_main, NULL, NULL);
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

static void check_leases(void)
{
    for (uint64_t page = 1; page < WORLD_PAGES; page++) {
        struct span_info span;
        if (!span_at(&world_heap, page, &span))
            continue;
        for (unsigned i = 1; i <= options.clients; i++) {
            bool his = map.spans[page].lessee == clients[i]->tag,
                 knows = clients[i]->leases[page].list != LEASE_NONE;
            if (!ex_is_dead(i) && wires[i].up && his != knows)
                ex_violation("page %u: client %u %s, the map says %s", (unsigned)page, i,
                             knows ? "has it leased" : "has not", his ? "it has" : "it has not");
            if (!ex_is_dead(i) && !wires[i].up && knows && !his)
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
    if (why)
        ex_violation("%s", why);
    for (unsigned i = 1; i <= options.clients; i++)
        if (ex_is_dead(i) && options.daemon && world_core.clients[clients[i]->tag])
            ex_violation("dead client %u was not reclaimed", i);
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
