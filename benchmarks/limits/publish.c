/* The limit of publishing: persistent, mandatory messages with the properties and headers of Warren's relay, confirmed,
 * at most WINDOW of them unconfirmed.
 *
 *   publish URL EXCHANGE KEY COUNT WINDOW BODY
 *
 * Prints the seconds from the first publish to the last confirm, and the seconds of CPU in them. Fails if a message is
 * returned or refused. */
#include "common.h"

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

int main(int argc, char **argv) {
    if (argc != 7) fail("usage: publish URL EXCHANGE KEY COUNT WINDOW BODY");
    amqp_connection_state_t connection = connect_to(argv[1]);
    amqp_confirm_select(connection, 1);
    check(connection, "no confirms");
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
