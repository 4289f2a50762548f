/* The limit of publishing: persistent, mandatory messages with the properties and headers of Warren's relay, confirmed,
 * at most WINDOW of them unconfirmed.
 *
 *   publish URL EXCHANGE KEY COUNT WINDOW BODY
 *
 * Prints the seconds from the first publish to the last confirm, and the seconds of CPU in them. Fails if a message is
 * returned or refused. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static void fail(const char *why) {
    fprintf(stderr, "publish: %s\n", why);
    exit(1);
}

static void check(amqp_connection_state_t connection, const char *what) {
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static amqp_connection_state_t connect_to(char *url) {
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
    amqp_confirm_select(connection, 1);
    check(connection, "no confirms");
    return connection;
}

static char *is_confirmed;
static uint64_t first_open = 1;

/* Wait for one confirm; return how many more messages are confirmed. Single confirms may come out of order. */
static uint64_t confirmed(amqp_connection_state_t connection) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(connection);
    if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) fail("the connection was lost");
    if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
        fail("a message was returned or refused");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    uint64_t tag = ack->multiple ? first_open : ack->delivery_tag, more = 0;
    for (; tag <= ack->delivery_tag; tag++) {
        more += !is_confirmed[tag];
        is_confirmed[tag] = 1;
    }
    if (ack->multiple) first_open = tag;
    return more;
}

static amqp_table_entry_t text_header(const char *name, const char *value) {
    amqp_table_entry_t entry = {amqp_cstring_bytes(name), {AMQP_FIELD_KIND_UTF8, {0}}};
    entry.value.value.bytes = amqp_cstring_bytes(value);
    return entry;
}

static amqp_table_entry_t number_header(const char *name, int32_t value) {
    amqp_table_entry_t entry = {amqp_cstring_bytes(name), {AMQP_FIELD_KIND_I32, {0}}};
    entry.value.value.i32 = value;
    return entry;
}

int main(int argc, char **argv) {
    if (argc != 7) fail("usage: publish URL EXCHANGE KEY COUNT WINDOW BODY");
    amqp_connection_state_t connection = connect_to(argv[1]);
    uint64_t count = strtoull(argv[4], NULL, 10), window = strtoull(argv[5], NULL, 10), done = 0;
    is_confirmed = calloc(count + 1, 1);
    char id[40], row[24];
    amqp_basic_properties_t properties = {0};
    properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                        AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG |
                        AMQP_BASIC_APP_ID_FLAG;
    properties.content_type = amqp_cstring_bytes("application/json");
    properties.delivery_mode = 2;
    properties.type = amqp_cstring_bytes(argv[3]);
    properties.app_id = amqp_cstring_bytes("bench");
    double start = clock_seconds(), cpu = cpu_seconds();
    for (uint64_t number = 1; number <= count; number++) {
        snprintf(id, sizeof id, "01890000-0000-7000-8000-%012llx", (unsigned long long)number);
        snprintf(row, sizeof row, "%llu", (unsigned long long)number);
        amqp_table_entry_t headers[] = {text_header("x-outbox-id", row), number_header("x-event-version", 1),
                                        number_header("x-attempt", 1), text_header("x-subject", row)};
        properties.headers = (amqp_table_t){4, headers};
        properties.message_id = amqp_cstring_bytes(id);
        properties.timestamp = (uint64_t)time(NULL);
        if (amqp_basic_publish(connection, 1, amqp_cstring_bytes(argv[2]), amqp_cstring_bytes(argv[3]), 1, 0,
                               &properties, amqp_cstring_bytes(argv[6])))
            fail("the connection was lost");
        while (number - done >= window) done += confirmed(connection);
    }
    while (done < count) done += confirmed(connection);
    printf("%.6f %.6f\n", clock_seconds() - start, cpu_seconds() - cpu);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
