/* The limit of RPC: a client and a server that do as Warren's do on the broker. Requests go to a classic queue,
 * mandatory, with a deadline, an expiration and a correlation id; each is acknowledged after its reply, which goes to an
 * exclusive queue of the client.
 *
 *   rpc URL serve QUEUE PREFETCH
 *   rpc URL call QUEUE COUNT WINDOW BODY
 *
 * The server returns each body until it is stopped. The client keeps WINDOW calls open; it prints the seconds of all
 * calls, the seconds of CPU in them, and then the seconds of each call. */
#include "common.h"

static const char *EXPIRATION = "30000";

static void send_to(amqp_connection_state_t connection, amqp_bytes_t queue, int mandatory,
                    amqp_basic_properties_t *properties, amqp_table_entry_t *headers, int count, amqp_bytes_t body) {
    properties->_flags |= AMQP_BASIC_CORRELATION_ID_FLAG | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG |
                          AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_APP_ID_FLAG;
    properties->content_type = amqp_cstring_bytes("application/json");
    properties->message_id = amqp_cstring_bytes("01890000-0000-7000-8000-000000000001");
    properties->timestamp = (uint64_t)time(NULL);
    properties->app_id = amqp_cstring_bytes("bench");
    properties->headers = (amqp_table_t){count, headers};
    if (amqp_basic_publish(connection, 1, amqp_empty_bytes, queue, mandatory, 0, properties, body))
        fail("the connection was lost");
}

static void next_delivery(amqp_connection_state_t connection, amqp_envelope_t *envelope) {
    amqp_maybe_release_buffers(connection);
    if (amqp_consume_message(connection, envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL)
        fail("the connection was lost, or a request returned");
}

static void serve(amqp_connection_state_t connection, char *queue, int prefetch) {
    amqp_table_entry_t arguments[] = {text_header("x-queue-type", "classic"), number_header("x-expires", 10000)};
    amqp_bytes_t name = amqp_cstring_bytes(queue);
    amqp_queue_declare(connection, 1, name, 0, 1, 0, 1, (amqp_table_t){2, arguments});
    check(connection, "no queue");
    amqp_basic_qos(connection, 1, 0, (uint16_t)prefetch, 0);
    check(connection, "no prefetch");
    amqp_basic_consume(connection, 1, name, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(connection, "cannot consume");
    for (;;) {
        amqp_envelope_t request;
        next_delivery(connection, &request);
        amqp_basic_properties_t reply = {0};
        reply.correlation_id = request.message.properties.correlation_id;
        amqp_table_entry_t headers[] = {text_header("x-rpc-status", "ok"),
                                        number_header("x-clock", (int64_t)time(NULL) * 1000)};
        send_to(connection, request.message.properties.reply_to, 1, &reply, headers, 2, request.message.body);
        amqp_basic_ack(connection, 1, request.delivery_tag, 0);
        amqp_destroy_envelope(&request);
    }
}

static void call(amqp_connection_state_t connection, char *queue, uint64_t count, uint64_t window, char *body) {
    amqp_table_entry_t arguments[] = {text_header("x-queue-type", "classic")};
    amqp_queue_declare_ok_t *made =
        amqp_queue_declare(connection, 1, amqp_empty_bytes, 0, 0, 1, 1, (amqp_table_t){1, arguments});
    check(connection, "no reply queue");
    amqp_bytes_t replies = amqp_bytes_malloc_dup(made->queue);
    amqp_basic_consume(connection, 1, replies, amqp_empty_bytes, 0, 1, 1, amqp_empty_table);
    check(connection, "cannot consume replies");
    double *sent = calloc(count, sizeof *sent), *took = calloc(count, sizeof *took);
    double start = clock_seconds(), cpu = cpu_seconds();
    for (uint64_t number = 0, done = 0; done < count;) {
        while (number < count && number - done < window) {
            char id[24];
            snprintf(id, sizeof id, "%llu", (unsigned long long)number);
            amqp_basic_properties_t request = {._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_EXPIRATION_FLAG};
            request.reply_to = replies;
            request.correlation_id = amqp_cstring_bytes(id);
            request.expiration = amqp_cstring_bytes(EXPIRATION);
            int64_t now = (int64_t)time(NULL) * 1000;
            amqp_table_entry_t headers[] = {number_header("x-deadline", now + 30000), number_header("x-clock", now)};
            sent[number++] = clock_seconds();
            send_to(connection, amqp_cstring_bytes(queue), 1, &request, headers, 2, amqp_cstring_bytes(body));
        }
        amqp_envelope_t reply;
        next_delivery(connection, &reply);
        amqp_bytes_t of = reply.message.properties.correlation_id;
        char id[24] = {0};
        memcpy(id, of.bytes, of.len < sizeof id ? of.len : 0);
        uint64_t which = strtoull(id, NULL, 10);
        if (which >= count || took[which] || reply.message.body.len != strlen(body)) fail("not the reply");
        took[which] = clock_seconds() - sent[which];
        done++;
        amqp_destroy_envelope(&reply);
    }
    printf("%.6f %.6f\n", clock_seconds() - start, cpu_seconds() - cpu);
    for (uint64_t number = 0; number < count; number++) printf("%.6f\n", took[number]);
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "serve")) {
        serve(connect_to(argv[1]), argv[3], atoi(argv[4]));
    } else if (argc == 7 && !strcmp(argv[2], "call")) {
        call(connect_to(argv[1]), argv[3], strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10), argv[6]);
    } else {
        fail("usage: rpc URL serve QUEUE PREFETCH | rpc URL call QUEUE COUNT WINDOW BODY");
    }
    return 0;
}
