/* The names of the heap's figures, once: for the daemon's reply, for struct arena_stats, for `arenactl stat`. A test
 * compares them with arena.h. Each is a uint64_t; bytes unless its name says otherwise. */
#ifndef PROTO_STATS_H
#define PROTO_STATS_H

#define STATS(X)                                                                                                       \
    X(heap_id, "first 64 bits of the heap's id")                                                                       \
    X(heap_max, "bytes that the heap may grow to")                                                                     \
    X(heap_backed, "bytes of the heap that have memory behind them")                                                   \
    X(heap_in_use, "bytes in spans")                                                                                   \
    X(objects_used, "allocated objects, owned and shared")                                                             \
    X(objects_owned, "allocated, not published")                                                                       \
    X(objects_shared, "published")                                                                                     \
    X(objects_cached, "free, in a client's magazines")                                                                 \
    X(bytes_used, "bytes of allocated objects, as their size classes have them")                                       \
    X(bytes_cached, "bytes of cached objects")                                                                         \
    X(bytes_leased, "bytes of spans that are leased to clients")                                                       \
    X(spans, "spans")                                                                                                  \
    X(spans_leased, "spans that are leased to clients")                                                                \
    X(clients, "attached clients")                                                                                     \
    X(transactions, "tags of transactions in use or kept by clients")                                                  \
    X(roots, "named roots")                                                                                            \
    X(refills, "leases that were granted since the heap was made")                                                     \
    X(round_trips, "requests of clients that were answered, all kinds")                                                \
    X(reclaimed_clients, "clients that died or said goodbye")                                                          \
    X(reclaimed_objects, "objects that the pass freed after them")                                                     \
    X(pages_free, "pages (8 KiB) in no span")                                                                          \
    X(pages_warm, "of these, pages with memory behind them")                                                           \
    X(pages_returned, "pages given back to the system since the heap was made")                                        \
    X(map_backed, "bytes of the map region with memory behind them")                                                   \
    X(state_backed, "bytes of the state region with memory behind them")                                               \
    X(words_in_use, "bytes of state words in use")                                                                     \
    X(epoch, "how often a daemon was started over this heap")

#endif
