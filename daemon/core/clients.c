/* Clients, their transactions, and the roots that they set. A client's entry in the map's tag table is written before
 * the process is told its tag; what it holds is charged to it and to its user. */
#include "daemon/core/core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/msg.h"
#include "shm/assert.h"
#include "shm/hazard.h"
#include "shm/redo.h"
#include "shm/root.h"

struct uid_account *account_of(struct core *core, uint32_t uid)
{
    struct uid_account *account;
    HASH_FIND(hh, core->accounts, &uid, sizeof uid, account);
    if (!account && (account = calloc(1, sizeof *account)) != NULL) {
        account->uid = uid;
        HASH_ADD(hh, core->accounts, uid, sizeof uid, account);
    }
    return account;
}

/* A number of clients, and some more, that is no less for that. */
static uint32_t clients_and(uint32_t clients, uint32_t more)
{
    return !clients ? 0 : clients < UINT32_MAX - more ? clients + more : UINT32_MAX;
}

uint32_t limit_user_connections(const struct limits *l)
{
    return l->uid_connections ? l->uid_connections : clients_and(l->uid_clients, CONNECTIONS_SPARE);
}

uint32_t limit_connections(const struct limits *l)
{
    return l->connections ? l->connections : clients_and(l->clients, 2 * CONNECTIONS_SPARE);
}

int account_connect(struct core *core, uint32_t uid)
{
    struct uid_account *account = account_of(core, uid);
    const struct limits *l = &core->limits;
    if (!account)
        return -ENOMEM;
    uint32_t all = limit_connections(l), spare = all < 2 * CONNECTIONS_SPARE ? all / 2 : CONNECTIONS_SPARE;
    bool may_have_spare = uid == 0 || account->connections == 0;
    int rc = limit_check(core, l->uid_connections ? "limit-user-connections" : "limit-user-clients", limit_user_connections(l),
                         account->connections, 1);
    if (rc == 0)
        rc = limit_check(core, l->connections ? "limit-connections" : "limit-clients", may_have_spare ? all : all - spare,
                         core->connection_count, 1);
    if (rc < 0)
        return rc;
    account->connections++;
    core->connection_count++;
    return 0;
}

void account_disconnect(struct core *core, uint32_t uid)
{
    struct uid_account *account = account_of(core, uid);
    if (!account || !account->connections)
        return;
    account->connections--;
    core->connection_count--;
}

/* ---- attach and death ---------------------------------------------------------------------------------------------------- */

/* A free tag, round robin so that one is not used again soon, among few so that the table stays small; 0: none. One that a
 * hazard names is left at rest: it was a committed transaction's, and somebody may be about to swap a word that bore it. */
static unsigned tag_take(struct core *core)
{
    struct map_header *header = core->heap.header;
    unsigned used = core->client_count + core->tx_tag_count + core->reclaim.dying_count;
    unsigned end = used < TAG_COUNT / 8 ? (used < 128 ? 512 : used * 4) : TAG_COUNT;
    if (end < header->tag_top)
        end = header->tag_top;
    for (unsigned n = 0; n < end; n++) {
        core->tag_cursor = core->tag_cursor + 1 < end ? core->tag_cursor + 1 : 1;
        if (core->tag_cursor >= header->tag_top) {
            tag_raise_top(&core->heap, core->tag_cursor + 1);
            return core->tag_cursor;
        }
        if (tag_state(&core->heap, core->tag_cursor) == TAG_FREE && !hazard_names(&core->heap, core->tag_cursor)) /* [HZ1] */
            return core->tag_cursor;
    }
    return 0;
}

static void count_client(struct core *core, int32_t change)
{
    core->client_count += (uint32_t)change;
    store_relaxed(&core->heap.header->clients, core->client_count);
}

static struct client *client_new(struct core *core, unsigned tag, const struct tag *identity)
{
    struct client *client = calloc(1, sizeof *client);
    struct uid_account *account = account_of(core, identity->uid);
    if (!client || !account) {
        free(client);
        return NULL;
    }
    *client = (struct client){.state = CLIENT_LIVE,
                              .tag = (uint16_t)tag,
                              .read_only = identity->read_only,
                              .pid = identity->pid,
                              .uid = identity->uid,
                              .account = account,
                              .heard_ns = core->now_ns,
                              .pidfd = -1};
    account->clients++;
    core->clients[tag] = client;
    count_client(core, 1);
    return client;
}

int client_attach(struct core *core, const struct tag *identity, struct client **ret)
{
    struct uid_account *account = account_of(core, identity->uid);
    if (!account)
        return -ENOMEM;
    enum { DYING_SPARE = 4096 }; /* the pass rests while a collection runs, and whoever comes and goes must not take all tags */
    uint64_t most = core->limits.uid_clients;
    int rc = limit_check(core, "limit-user-clients", most, account->clients, 1);
    if (rc == 0)
        rc = limit_check(core, "limit-user-clients", most ? most + DYING_SPARE : 0, (uint64_t)account->clients + account->dying, 1);
    if (rc == 0)
        rc = limit_check(core, "limit-clients", core->limits.clients, core->client_count, 1);
    if (rc < 0)
        return rc;
    unsigned tag = tag_take(core);
    if (!tag)
        return -EUSERS;
    struct client *client = client_new(core, tag, identity);
    if (!client)
        return -ENOMEM;
    struct tag value = *identity;
    value.state = TAG_CLIENT;
    ticket_reset(&core->heap, tag);
    tag_write(&core->heap, tag, &value);
    *ret = client;
    return 0;
}

struct client *client_replaced(const struct core *core, const struct tag *identity, bool fresh, const struct client *after)
{
    bool by_copy = fresh && identity->copy;
    if (!identity->image)
        return NULL;
    for (unsigned tag = after ? after->tag + 1u : 1; tag < core->heap.header->tag_top; tag++) {
        struct client *client = core->clients[tag];
        const struct tag *t = &core->heap.tags[tag];
        if (!client || client->state == CLIENT_DYING || !t->image || !tag_same_process(t, identity))
            continue;
        if (t->image != identity->image || (by_copy && t->copy == identity->copy && t->read_only == identity->read_only))
            return client;
    }
    return NULL;
}

void client_die(struct core *core, struct client *client)
{
    if (client->state == CLIENT_DYING)
        return;
    mcentral_give_up(core, client);
    client->state = CLIENT_DYING;
    client->account->clients--;
    client->account->dying++;
    count_client(core, -1);
    core->heap.header->reclaimed_clients++;
    tag_set_state(&core->heap, client->tag, TAG_CLIENT_DYING);
    reclaim_add(core, client->tag);
    for (uint32_t i = 0; i < client->tx_count; i++) {
        unsigned tag = client->tx_tags[i];
        bool committed = tag_state(&core->heap, tag) == TAG_TX_COMMITTED;
        tag_set_state(&core->heap, tag, committed ? TAG_TX_PUBLISHING : TAG_TX_DYING);
        reclaim_add(core, tag);
    }
}

void client_list_begin(struct client *client)
{
    client->resume_serial++;
    client->resume_serial += client->resume_serial == 0;
}

/* What is above `top` is nobody's, and is not even looked at: that would give memory to a hole of the map. */
void client_list(struct core *core, struct client *client, const uint32_t *spans, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (spans[i] < core->mheap.top && load_relaxed(&core->heap.spans[spans[i]].lessee) == client->tag)
            core->dspans[spans[i]].listed = client->resume_serial;
}

bool client_take_back(struct core *core, struct client *client, uint64_t *cursor)
{
    uint64_t page = *cursor;
    uint32_t seen = 0, words = 0;
    while (page < core->mheap.top && seen++ < TURN_SPANS && words < TURN_WORDS) {
        struct span_info span;
        if (!core_span_next(core, &page, &span))
            continue;
        if (load_relaxed(&core->heap.spans[span.first].lessee) == client->tag &&
            core->dspans[span.first].listed != client->resume_serial) {
            words += span.objects + span_entries_now(&span);
            mcentral_uncache_span(core, client, span.first);
        }
    }
    *cursor = page;
    return page >= core->mheap.top;
}

/* ---- transactions -------------------------------------------------------------------------------------------------------------- */

static bool owns_tx(const struct core *core, const struct client *client, unsigned tag)
{
    enum tag_state state = tag < TAG_COUNT ? tag_state(&core->heap, tag) : TAG_FREE;
    return (state == TAG_TX || state == TAG_TX_COMMITTED) && core->heap.tags[tag].owner == client->tag;
}

static int tx_remember(struct client *client, unsigned tag)
{
    if (client->tx_count == client->tx_capacity) {
        uint32_t capacity = client->tx_capacity ? client->tx_capacity * 2 : 8;
        uint16_t *grown = realloc(client->tx_tags, capacity * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        client->tx_tags = grown;
        client->tx_capacity = capacity;
    }
    client->tx_tags[client->tx_count++] = (uint16_t)tag;
    return 0;
}

int client_tx_tags(struct core *core, struct client *client, uint32_t count, uint32_t *out)
{
    enum { TX_TAGS_ALL = TAG_COUNT * 3 / 4 }; /* the rest stays for clients, whatever is configured */
    const struct limits *l = &core->limits;
    uint64_t all = l->transactions && l->transactions < TX_TAGS_ALL ? l->transactions : TX_TAGS_ALL;
    uint32_t got = 0;
    while (got < count) {
        if (limit_check(core, "limit-client-transactions", l->client_transactions, client->tx_count, 1) < 0 ||
            limit_check(core, "limit-user-transactions", l->uid_transactions, client->account->transactions, 1) < 0 ||
            limit_check(core, "limit-transactions", all, core->tx_tag_count, 1) < 0)
            return got ? (int)got : -EDQUOT;
        unsigned tag = tag_take(core);
        if (!tag || tx_remember(client, tag) < 0)
            return got ? (int)got : tag ? -ENOMEM : -EUSERS;
        struct tag value = {.state = TAG_TX, .owner = client->tag, .pid = client->pid, .uid = client->uid};
        tag_write(&core->heap, tag, &value);
        core->tx_tag_count++;
        client->account->transactions++;
        out[got++] = tag;
    }
    return (int)got;
}

void client_tx_take_back(struct core *core, struct client *client, const uint8_t *listed)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < client->tx_count; i++) {
        uint16_t tag = client->tx_tags[i];
        if (tag_state(&core->heap, tag) != TAG_TX || (listed[tag / 8] >> (tag % 8) & 1)) {
            client->tx_tags[kept++] = tag;
            continue;
        }
        tag_set_state(&core->heap, tag, TAG_TX_DYING); /* the pass finds no word of it; after it the tag is free */
        reclaim_add(core, tag);
    }
    client->tx_count = kept;
}

/* ---- the collector ------------------------------------------------------------------------------------------------------------------ */

int client_gc_mode(struct core *core, struct client *client, uint64_t mode)
{
    if (mode >= GC_MODE_COUNT)
        return -EINVAL;
    tag_set_gc_mode(&core->heap, client->tag, (enum gc_mode)mode);
    return 0;
}

static bool pins_may_be_at(const struct core *core, uint64_t ref)
{
    return ref < core->heap.heap_bytes && ref % PAGE_SIZE == 0;
}

/* Looked at by a collection only, and checked there. */
int client_pins(struct core *core, struct client *client, uint64_t ref)
{
    if (!pins_may_be_at(core, ref))
        return -EINVAL;
    tag_set_pins(&core->heap, client->tag, ref);
    return 0;
}

int client_safepoint(struct core *core, struct client *client, uint32_t request, uint64_t mode)
{
    if (mode >= GC_MODE_COUNT)
        return -EINVAL;
    if (!client_may(core, client, request))
        return -ECANCELED;
    client_gc_mode(core, client, mode);
    client_did(core, client, request);
    return 0;
}

int client_first_pins(struct core *core, struct client *client, uint32_t request, uint64_t ref)
{
    if (!pins_may_be_at(core, ref))
        return -EINVAL;
    if (!client_may(core, client, request))
        return -ECANCELED;
    client_pins(core, client, ref);
    client_did(core, client, request);
    return 0;
}

/* ---- roots ------------------------------------------------------------------------------------------------------------------------- */

/* A reference that a root may hold: to the start of an object, published or of transaction `tx` or a committed one. */
static bool may_refer(const struct core *core, uint64_t ref, unsigned tx)
{
    struct object object;
    if (ref == 0 || ref >> PAGE_SHIFT >= core->mheap.top || !object_find(&core->heap, ref, &object) || object.remainder)
        return false;
    uint16_t word = load_acquire(object.word); /* [PB1] */
    return word == WORD_SHARED || (word_is_owned(word) && (word_tag(word) == tx || tag_is_committed(&core->heap, word_tag(word))));
}

/* What a change of a root would do: 0 and its slot (-1: nothing to do), or an error. Changes nothing. */
static int root_plan(struct core *core, struct client *client, const char *name, bool cas, uint64_t expected,
                     uint64_t desired, unsigned tx, int64_t *ret_slot)
{
    if (root_name_check(name) < 0)
        return -EINVAL;
    int64_t slot = root_find(&core->heap, name);
    uint64_t now = slot >= 0 ? core->heap.roots[slot].ref : 0;
    if (cas && now != expected)
        return -EAGAIN;
    if (desired && !may_refer(core, desired, tx))
        return -EINVAL;
    if (!desired && slot < 0)
        return cas ? (*ret_slot = -1, 0) : -ENOENT;
    if (slot < 0) {
        if (limit_check(core, "limit-user-roots", core->limits.uid_roots, client->account->roots, 1) < 0 ||
            limit_check(core, "limit-roots", core->limits.roots, core->root_count, 1) < 0)
            return -EDQUOT;
        slot = root_find_free(&core->heap, name, client->uid);
        if (slot < 0)
            return -ENOSPC;
    }
    *ret_slot = slot;
    return 0;
}

static void root_apply(struct core *core, uint32_t uid, const char *name, int64_t slot, uint64_t desired)
{
    struct root *root = &core->heap.roots[slot];
    bool was = root_touched(&core->heap, (uint32_t)slot) && root->ref;
    struct uid_account *account = account_of(core, was ? root->uid : uid);
    core->root_changes++;
    if (!was && desired) {
        core->root_count++;
        account->roots++;
    } else if (was && !desired) {
        core->root_count--;
        account->roots--;
    }
    root_write(&core->heap, (uint32_t)slot, name, desired, uid);
    if (core->wake_root)
        core->wake_root(core->wake_context, &core->heap.root_gens[root_hash(name) % ROOT_GENS]);
}

/* Moves a root and, as one with it, commits transaction `tx` (0: none) and notes that request `request` of the client was
 * done (0: not to be noted). die: before `valid` nothing has happened; from then on all of it has, or will have at the next
 * start, before anybody is served. */
static void root_move(struct core *core, struct client *client, unsigned tx, uint32_t request, const char *name, int64_t slot,
                      uint64_t desired)
{
    struct heap *h = &core->heap;
    redo_begin(h, (uint16_t)tx, request ? client->tag : 0, request, (uint32_t)slot, name, desired, client->uid);
    if (tx)
        tag_set_state(h, tx, TAG_TX_COMMITTED);
    root_apply(core, client->uid, name, slot, desired);
    if (request)
        tag_set_done(h, client->tag, request);
    redo_end(h);
}

int client_root(struct core *core, struct client *client, uint32_t request, const char *name, unsigned mode,
                uint64_t expected, uint64_t desired)
{
    int64_t slot;
    int rc = root_plan(core, client, name, mode == ROOT_MODE_CAS, expected, desired, 0, &slot);
    if (rc < 0 || slot < 0)
        return rc;
    if (!client_may(core, client, request))
        return -ECANCELED;
    root_move(core, client, 0, request, name, slot, desired);
    return 0;
}

int client_tx_commit(struct core *core, struct client *client, uint32_t request, unsigned tag, const char *name,
                     uint64_t expected, uint64_t desired)
{
    struct heap *h = &core->heap;
    int64_t slot = -1;
    if (!owns_tx(core, client, tag) || tag_state(h, tag) != TAG_TX)
        return -EPERM;
    if (name[0]) {
        int rc = root_plan(core, client, name, true, expected, desired, tag, &slot);
        if (rc < 0)
            return rc;
    }
    if (!client_may(core, client, request))
        return -ECANCELED;
    if (slot >= 0)
        root_move(core, client, tag, request, name, slot, desired);
    else { /* no record is needed: the tag's state alone tells */
        tag_set_state(h, tag, TAG_TX_COMMITTED);
        client_did(core, client, request);
    }
    return 0;
}

int client_tx_resolved(struct core *core, struct client *client, unsigned tag)
{
    if (!owns_tx(core, client, tag))
        return -EPERM;
    tag_set_state(&core->heap, tag, TAG_TX);
    return 0;
}

/* ---- rebuild and check ----------------------------------------------------------------------------------------------------------- */

void clients_rebuild(struct core *core)
{
    struct heap *h = &core->heap;
    count_client(core, 0); /* from the beginning */
    for (unsigned tag = 1; tag < h->header->tag_top; tag++) {
        enum tag_state state = tag_state(h, tag);
        if (state != TAG_CLIENT && state != TAG_CLIENT_DYING)
            continue;
        struct client *client = client_new(core, tag, &h->tags[tag]);
        ASSERT(client);
        client->state = CLIENT_DETACHED; /* until it comes back, or is found dead */
        if (client->read_only) /* its word goes with its connection */
            client_gc_mode(core, client, GC_RUNS);
        if (state == TAG_CLIENT_DYING) {
            client->state = CLIENT_DYING;
            client->account->clients--;
            client->account->dying++;
            count_client(core, -1);
            reclaim_add(core, tag);
        }
    }
    for (unsigned tag = 1; tag < h->header->tag_top; tag++) {
        enum tag_state state = tag_state(h, tag);
        if (state < TAG_TX)
            continue;
        unsigned owner_tag = h->tags[tag].owner;
        struct client *owner = owner_tag < TAG_COUNT ? core->clients[owner_tag] : NULL;
        core->tx_tag_count++;
        struct uid_account *account = account_of(core, h->tags[tag].uid);
        ASSERT(account);
        account->transactions++;
        if (state == TAG_TX_DYING || state == TAG_TX_PUBLISHING)
            reclaim_add(core, tag);
        else if (!owner || owner->state == CLIENT_DYING) { /* the daemon died within client_die() */
            tag_set_state(h, tag, state == TAG_TX_COMMITTED ? TAG_TX_PUBLISHING : TAG_TX_DYING);
            reclaim_add(core, tag);
        } else {
            int rc = tx_remember(owner, tag);
            ASSERT(rc == 0);
        }
    }
    for (uint32_t slot = 0; slot < h->root_slots; slot++) {
        if (!root_touched(h, slot) || !h->roots[slot].ref)
            continue;
        struct uid_account *account = account_of(core, h->roots[slot].uid);
        ASSERT(account);
        account->roots++;
        core->root_count++;
    }
}

static void client_free(struct client *client)
{
    if (!client)
        return;
    free(client->tx_tags);
    free(client);
}

void clients_free(struct core *core)
{
    struct uid_account *account, *next;
    for (unsigned tag = 1; core->clients && tag < TAG_COUNT; tag++)
        client_free(core->clients[tag]);
    free(core->clients);
    core->clients = NULL;
    HASH_ITER(hh, core->accounts, account, next) {
        HASH_DEL(core->accounts, account);
        free(account->spans);
        free(account);
    }
}

void client_forget(struct core *core, unsigned tag)
{
    client_free(core->clients[tag]);
    core->clients[tag] = NULL;
}

const char *clients_check(struct core *core)
{
    for (unsigned tag = 1; tag < core->heap.header->tag_top; tag++) {
        const char *why = tag_check(&core->heap, tag);
        enum tag_state state = tag_state(&core->heap, tag);
        bool is_client = state == TAG_CLIENT || state == TAG_CLIENT_DYING;
        if (why)
            return why;
        if (is_client != (core->clients[tag] != NULL))
            return "the tag table and the daemon disagree about a client";
    }
    return NULL;
}

const char *roots_check(struct core *core, struct roots_look *look, uint32_t slots)
{
    const struct heap *h = &core->heap;
    if (look->slot == 0)
        look->changes = core->root_changes;
    for (; slots-- && look->slot < h->root_slots; look->slot++) {
        const char *why = root_check(h, look->slot);
        if (why)
            return why;
        look->roots += root_touched(h, look->slot) && h->roots[look->slot].ref != 0;
    }
    bool same = look->changes == core->root_changes; /* none has come or gone meanwhile */
    return look->slot == h->root_slots && same && look->roots != core->root_count ? "the number of roots is wrong" : NULL;
}
