/* What the limits share: a connection, clocks, headers. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static inline void fail(const char *why) {
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static inline void check(amqp_connection_state_t connection, const char *what) {
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static inline double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static inline double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Return a connection with channel 1 open. */
static inline amqp_connection_state_t connect_to(char *url) {
    struct amqp_connection_info to;
    if (amqp_parse_url(url, &to) != AMQP_STATUS_OK) fail("not a URL");
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (!socket || amqp_socket_open(socket, to.host, to.port)) fail("cannot connect");
    amqp_rpc_reply_t reply =
        amqp_login(connection, to.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, to.user, to.password);
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("login refused");
    amqp_channel_open(connection, 1);
    check(connection, "no channel");
    return connection;
}

static inline amqp_table_entry_t text_header(const char *name, const char *value) {
    amqp_table_entry_t entry = {amqp_cstring_bytes(name), {AMQP_FIELD_KIND_UTF8, {0}}};
    entry.value.value.bytes = amqp_cstring_bytes(value);
    return entry;
}

/* As pika does it: 32 bits if the number fits. */
static inline amqp_table_entry_t number_header(const char *name, int64_t value) {
    amqp_table_entry_t entry = {amqp_cstring_bytes(name), {AMQP_FIELD_KIND_I64, {0}}};
    entry.value.value.i64 = value;
    if (value == (int32_t)value) {
        entry.value.kind = AMQP_FIELD_KIND_I32;
        entry.value.value.i32 = (int32_t)value;
    }
    return entry;
}
