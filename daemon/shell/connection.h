/* Connections: a socket, the process behind it, its requests. Between server.c, which owns the loop, and the core. */
#ifndef DAEMON_CONNECTION_H
#define DAEMON_CONNECTION_H

#include "daemon/shell/server.h"

/* What a connection may hold of the daemon's memory: CONNECTION_SOCKET in its socket, behind which nothing is read from it,
 * and one reply. A large one is INFO's (bounded by info.h), or a client's list of transaction tags (16 KiB). */
enum { CONNECTION_SOCKET = 8 << 10 };

struct packet {
    struct packet *next;
    uint32_t bytes;
    uint8_t data[];
};

struct watch;

struct connection {
    struct connection *next, *prev;
    struct ready ready;    /* its place in the server's line */
    struct server *server;
    uv_poll_t poll;
    int fd;
    uint32_t pid, uid, gid;
    int pidfd;             /* until a client takes it over */
    uint32_t start_time;   /* of the process: see struct tag */
    uint64_t inode;        /* likewise */
    struct client *client; /* NULL: before HELLO, or a monitor */
    bool greeted, monitor, closing;
    bool looked;           /* greeted by a look: a HELLO may follow */
    bool welcomed;         /* as a new client, and nothing was sent or heard since */
    bool ended;            /* it has hung up: what is still to be read is looked through for a BYE */
    bool counted;          /* in its user's account */
    uint8_t *listed_tags;  /* of transactions, a bit each; NULL: it lists none */
    struct packet *out_first, *out_last; /* replies that the socket did not take yet; while there are any, nothing is read */
    uint32_t silent_ticks; /* before HELLO */
    uint32_t unread, unread_ticks; /* bytes of INFO's reply that it has not read yet, as far as is known, and for how long */
    uint32_t owed;    /* requests that wait for their reply: while there are any, nothing more is read */
    uint64_t resume_at; /* page that the look through its leases has come to */
    uint32_t resume_id;
    bool resume_listed; /* that look is under way: it stands in a list for it */
    struct connection *resume_next;
    struct packet *held; /* waits for the end of a collection; while there is one, nothing is read */
    bool held_is_gc;
    struct packet *rest; /* of a packet that was too heavy for a turn; it is served next */
};

void server_pump(struct server *s);

void connections_serve(struct server *s); /* what a turn has room for */
void connection_on_listen(uv_poll_t *poll, int status, int events);
void connection_owe(struct connection *c, int change);
void connections_tick(struct server *s);
void connections_allow_again(struct server *s);
void connections_close(struct server *s);
void connections_free(struct server *s);
/* After a start: which of the clients in the map have a living process; those that surely have none die. */
void connections_find_dead(struct server *s);

/* Answers. An error that closes the connection is its own. */
void connection_reply(struct connection *c, uint32_t id, struct msg m);
void connection_ok(struct connection *c, uint32_t id, uint64_t value);
void connection_limit(struct connection *c, uint32_t id); /* -EDQUOT: which limit it was, and by how much */
void connection_send(struct connection *c, const struct msg *m, const int *fds, int fd_count);
void connection_error(struct connection *c, uint32_t id, int error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void connection_close(struct connection *c, const char *why);
/* Its other side has hung up, or died: nothing more that came by it is done, but for a BYE. A system call. */
bool connection_hung_up(const struct connection *c);
void connection_leave(struct connection *c); /* its client is gone from here on */
int connection_watch(struct connection *c, struct client *client);
void connection_unwatch(struct client *client);
/* Keeps a packet, and handles it later. */
void connection_hold(struct connection *c, const uint8_t *packet, size_t bytes, bool is_gc);
void connection_release(struct connection *c);
/* The rest of a packet, which is handled as one when it is the connection's turn again. */
void connection_rest(struct connection *c, const uint8_t *packet, size_t bytes);

/* requests.c: one packet. */
void request_handle(struct connection *c, const uint8_t *packet, size_t bytes);

/* allow.c: NULL, or why the process at the other end may not attach. */
const char *allow_refuses(const struct config *config, const struct connection *c);

/* peer.c: fills in who is at the other end of c->fd. -EMFILE; -ESRCH and *ret_why. */
int peer_identify(struct connection *c, bool fallback, const char **ret_why);
/* Does the process that an entry names live? PEER_ALIVE: *ret_pidfd is its pidfd. PEER_UNTOLD: `why` says why not.
 * pid_is_ours: the entry's pid was read in this pid namespace. */
enum { PEER_WHY = 64 };
enum peer_verdict { PEER_ALIVE, PEER_DEAD, PEER_UNTOLD };
enum peer_verdict peer_look(const struct tag *t, bool pid_is_ours, int *ret_pidfd, char why[PEER_WHY]);
/* Does the entry's pid lead to its process here? Then a successor of this daemon finds it. */
bool peer_opens_again(const struct tag *t);
/* Does the client's entry name the process behind this connection? */
bool peer_is_client(const struct connection *c, const struct client *client);
uint64_t peer_pid_namespace(void);      /* 0: not known */
void peer_boot_id(char boot_id[32]);    /* zeros: not known */
void peer_command(uint32_t pid, char command[16]);

#endif
