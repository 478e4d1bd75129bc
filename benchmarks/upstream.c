/* The model provider of the benchmarks: canned OpenAI-style answers, as cheaply as one core can give them.
 *
 * Owns: framing of requests (Content-Length or chunked, split anywhere, pipelined), one 1.2 KB answer, one stream.
 * Does not own: any check of the request beyond its framing. Started by `upstream.py`.
 *
 *   upstream PORT [EVENT_GAP_US]
 *
 * A body that holds `"stream": true` gets a stream: EVENTS content deltas, a finish event, a usage event, [DONE]. Every
 * event is its own chunk and its own write(). Events are dealt round-robin over the open streams, one each per turn of
 * the loop, so that they reach the target one by one as a model's do, and not as one burst per stream. EVENT_GAP_US
 * holds every stream to at most one event per that many microseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    EVENTS = 50,              /* content deltas in a stream; three more events close it */
    CONTENT = 940,            /* bytes of content in the plain answer, which makes it 1.2 KB */
    HEAD_MAX = 64 * 1024,     /* a request's head beyond this ends the connection */
    BODY_MAX = 64 * 1024 * 1024,
    BACKLOG = 4096,
    TURN = 512,               /* epoll events taken per turn of the loop */
};

typedef struct {
    char *bytes;
    size_t size;
} Blob;

typedef struct Connection {
    int fd;
    char *in;                 /* unread request bytes */
    size_t have, room;
    char *out;                /* what write() did not take */
    size_t out_size, out_sent;
    int watching_write;
    int event;                /* next event of the open stream, -1 when none is open */
    long long due_us;
    int slot;                 /* place in `streams` */
} Connection;

static Blob plain, models, not_found, stream_head, events[EVENTS + 3];
static Connection **streams;
static int streams_open, streams_room;
static int poller;
static long long gap_us;

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static Blob blob(const char *text) {
    Blob made = {strdup(text), strlen(text)};
    return made;
}

static Blob answer(const char *status, const char *body) {
    char *text;
    int size = asprintf(&text, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
                        strlen(body), body);
    Blob made = {text, (size_t)size};
    return made;
}

static Blob chunk(const char *event) {
    char *text;
    int size = asprintf(&text, "%zx\r\n%s\r\n", strlen(event), event);
    Blob made = {text, (size_t)size};
    return made;
}

#define EVENT_START "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000," \
                    "\"model\":\"bench-model\",\"system_fingerprint\":\"fp_bench\",\"choices\":["

static void prepare(void) {
    static const char sentence[] = "The quick brown fox jumps over the lazy dog while the model writes on. ";
    static char content[CONTENT + 1], text[4096];
    for (int i = 0; i < CONTENT; i++) content[i] = sentence[i % (sizeof sentence - 1)];
    snprintf(text, sizeof text,
             "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench-model\","
             "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":200,\"total_tokens\":320}}",
             content);
    plain = answer("200 OK", text);
    models = answer("200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"bench-model\",\"object\":\"model\",\"created\":1760000000,"
                              "\"owned_by\":\"bench\"}]}");
    not_found = answer("404 Not Found", "{\"error\":{\"message\":\"no such path\",\"type\":\"invalid_request_error\"}}");
    stream_head = blob("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < EVENTS; i++) {
        snprintf(text, sizeof text, EVENT_START "{\"index\":0,\"delta\":{%s\"content\":\" word%02d\"},\"finish_reason\":null}]}\n\n",
                 i ? "" : "\"role\":\"assistant\",", i);
        events[i] = chunk(text);
    }
    events[EVENTS] = chunk(EVENT_START "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    events[EVENTS + 1] = chunk(EVENT_START "],\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":50,\"total_tokens\":170}}\n\n");
    snprintf(text, sizeof text, "data: [DONE]\n\n");
    Blob done = chunk(text);
    char *last = malloc(done.size + 6);
    memcpy(last, done.bytes, done.size);
    memcpy(last + done.size, "0\r\n\r\n", 6);
    events[EVENTS + 2] = (Blob){last, done.size + 5};
    free(done.bytes);
}

static void leave_streams(Connection *c) {
    if (c->event < 0) return;
    streams[c->slot] = streams[--streams_open];
    streams[c->slot]->slot = c->slot;
    c->event = -1;
}

static void join_streams(Connection *c) {
    if (streams_open == streams_room) {
        streams_room = streams_room ? streams_room * 2 : 64;
        streams = realloc(streams, sizeof *streams * (size_t)streams_room);
    }
    c->slot = streams_open;
    streams[streams_open++] = c;
    c->event = 0;
    c->due_us = gap_us ? now_us() + gap_us : 0;
}

static void drop(Connection *c) {
    leave_streams(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static void watch(Connection *c, int writable) {
    if (c->watching_write == writable) return;
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
    c->watching_write = writable;
}

/* 0 when sent or queued, -1 when the peer is gone. */
static int send_blob(Connection *c, const char *bytes, size_t size) {
    ssize_t sent = 0;
    if (!c->out_size) {
        sent = write(c->fd, bytes, size);
        if (sent == (ssize_t)size) return 0;
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent < 0) sent = 0;
    }
    c->out = realloc(c->out, c->out_size + size - (size_t)sent);
    memcpy(c->out + c->out_size, bytes + sent, size - (size_t)sent);
    c->out_size += size - (size_t)sent;
    watch(c, 1);
    return 0;
}

static int flush_out(Connection *c) {
    while (c->out_sent < c->out_size) {
        ssize_t sent = write(c->fd, c->out + c->out_sent, c->out_size - c->out_sent);
        if (sent < 0) return errno == EAGAIN ? 0 : -1;
        c->out_sent += (size_t)sent;
    }
    c->out_size = c->out_sent = 0;
    watch(c, 0);
    return 0;
}

/* The value of a header in head[0..size), or NULL; `*length` is its size without surrounding blanks. */
static const char *header(const char *head, size_t size, const char *name, size_t *length) {
    size_t name_size = strlen(name);
    const char *line = memchr(head, '\n', size), *end = head + size;
    while (line && ++line + name_size < end) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) return NULL;
        if (!strncasecmp(line, name, name_size) && line[name_size] == ':') {
            const char *value = line + name_size + 1;
            while (value < stop && (*value == ' ' || *value == '\t')) value++;
            const char *last = stop;
            while (last > value && (last[-1] == '\r' || last[-1] == ' ')) last--;
            *length = (size_t)(last - value);
            return value;
        }
        line = stop;
    }
    return NULL;
}

static int wants_stream(const char *body, size_t size) {
    static const char key[] = "\"stream\"";
    const char *end = body + size, *at = body;
    while ((at = memmem(at, (size_t)(end - at), key, sizeof key - 1))) {
        at += sizeof key - 1;
        while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
        if (at == end || *at++ != ':') continue;
        while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
        if (end - at >= 4 && !memcmp(at, "true", 4)) return 1;
    }
    return 0;
}

/* Bytes taken by the chunked body at `at`, 0 while incomplete, -1 when malformed. Data is moved together to `*body`. */
static ssize_t unchunk(char *at, size_t size, char **body, size_t *body_size) {
    char *read = at, *end = at + size, *write_to = NULL;
    for (;;) { /* first pass: is it complete? */
        char *eol = memmem(read, (size_t)(end - read), "\r\n", 2);
        if (!eol) return 0;
        char *stop;
        unsigned long n = strtoul(read, &stop, 16);
        if (stop == read || n > BODY_MAX) return -1;
        read = eol + 2;
        if (n == 0) {
            for (;;) { /* trailers until an empty line */
                eol = memmem(read, (size_t)(end - read), "\r\n", 2);
                if (!eol) return 0;
                if (eol == read) break;
                read = eol + 2;
            }
            break;
        }
        if ((size_t)(end - read) < n + 2) return 0;
        read += n + 2;
    }
    size_t taken = (size_t)(read + 2 - at);
    for (read = at, *body = write_to = at;;) { /* second pass: move the data together */
        char *eol = memmem(read, (size_t)(end - read), "\r\n", 2);
        unsigned long n = strtoul(read, NULL, 16);
        if (!n) break;
        memmove(write_to, eol + 2, n);
        write_to += n;
        read = eol + 2 + n + 2;
    }
    *body_size = (size_t)(write_to - at);
    return (ssize_t)taken;
}

/* Answers every complete request in the buffer; a request behind an open stream waits for its end. -1 ends it. */
static int answer_requests(Connection *c) {
    size_t done = 0;
    int result = 0;
    while (c->event < 0 && done < c->have && !result) {
        char *at = c->in + done, *head_end = memmem(at, c->have - done, "\r\n\r\n", 4);
        if (!head_end) {
            if (c->have - done > HEAD_MAX) result = -1;
            break;
        }
        size_t head = (size_t)(head_end + 4 - at), length = 0, body_size = 0, taken = head;
        char *body = at + head;
        const char *value = header(at, head, "transfer-encoding", &length);
        if (value && length >= 7 && !strncasecmp(value + length - 7, "chunked", 7)) {
            ssize_t chunked = unchunk(body, c->have - done - head, &body, &body_size);
            if (chunked < 0) result = -1;
            taken += chunked > 0 ? (size_t)chunked : 0;
            if (chunked == 0) value = NULL, taken = 0;
        } else if ((value = header(at, head, "content-length", &length))) {
            body_size = strtoul(value, NULL, 10);
            if (body_size > BODY_MAX) result = -1;
            taken = c->have - done - head < body_size ? 0 : head + body_size;
        }
        if (result) break;
        if (!taken) { /* the body is not here yet */
            if (done == 0 && c->have == head && header(at, head, "expect", &length))
                result = send_blob(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
            break;
        }
        char *path_end = memchr(at, '\r', head);
        int post = !strncmp(at, "POST ", 5);
        int chat = post && memmem(at, (size_t)(path_end - at), "/chat/completions", 17);
        if (chat && wants_stream(body, body_size)) {
            result = send_blob(c, stream_head.bytes, stream_head.size);
            if (!result) join_streams(c);
        } else {
            const Blob *reply = chat ? &plain : post ? &not_found : &models;
            result = send_blob(c, reply->bytes, reply->size);
        }
        done += taken;
    }
    memmove(c->in, c->in + done, c->have - done);
    c->have -= done;
    return result;
}

static int read_requests(Connection *c) {
    for (;;) {
        if (c->room - c->have < 4096) {
            c->room = c->room ? c->room * 2 : 8192;
            if (c->room > 2UL * BODY_MAX) return -1;
            c->in = realloc(c->in, c->room);
        }
        size_t asked = c->room - c->have;
        ssize_t got = read(c->fd, c->in + c->have, asked);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return -1;
        if (got < 0) return 0;
        c->have += (size_t)got;
        if (answer_requests(c)) return -1;
        if ((size_t)got < asked) return 0;
    }
}

/* One event to every stream that is due; the wait in ms until the next one is, -1 with no stream open. */
static int deal_events(void) {
    if (!streams_open) return -1;
    long long now = gap_us ? now_us() : 0, next = now + 1000000;
    for (int i = 0; i < streams_open;) {
        Connection *c = streams[i];
        if (c->out_size || c->due_us > now) {
            if (!c->out_size && c->due_us < next) next = c->due_us;
            i++;
            continue;
        }
        const Blob *event = &events[c->event];
        int gone = send_blob(c, event->bytes, event->size);
        if (gone) {
            drop(c);
            continue;
        }
        c->due_us = gap_us ? c->due_us + gap_us : 0;
        if (++c->event == EVENTS + 3) {
            leave_streams(c);
            if (c->have && answer_requests(c)) drop(c);
            continue;
        }
        if (c->due_us < next) next = c->due_us;
        i++;
    }
    if (!streams_open) return -1;
    return next <= now ? 0 : (int)((next - now) / 1000);
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->event = -1;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: upstream PORT [EVENT_GAP_US]\n");
        return 2;
    }
    gap_us = argc > 2 ? atoll(argv[2]) : 0;
    signal(SIGPIPE, SIG_IGN);
    prepare();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) {
        perror("upstream");
        return 1;
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, ready[TURN];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int wait = deal_events();
        int n = epoll_wait(poller, ready, TURN, wait);
        for (int i = 0; i < n; i++) {
            Connection *c = ready[i].data.ptr;
            if (!c) {
                accept_all(listener);
                continue;
            }
            int gone = ready[i].events & (EPOLLERR | EPOLLHUP) ? -1 : 0;
            if (!gone && ready[i].events & EPOLLOUT) gone = flush_out(c);
            if (!gone && ready[i].events & EPOLLIN) gone = read_requests(c);
            if (gone) drop(c);
        }
    }
}
