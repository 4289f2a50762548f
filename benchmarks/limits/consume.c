/* The limit of consuming: a filled queue is emptied, each message acknowledged by itself or several at once.
 *
 *   consume URL QUEUE COUNT PREFETCH TOGETHER
 *
 * Prints the seconds from the first delivery to the last ack, and the seconds of CPU in them. TOGETHER messages share an
 * ack; 1: each has its own. */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 6) fail("usage: consume URL QUEUE COUNT PREFETCH TOGETHER");
    amqp_connection_state_t connection = connect_to(argv[1]);
    uint64_t count = strtoull(argv[3], NULL, 10), together = strtoull(argv[5], NULL, 10);
    amqp_basic_qos(connection, 1, 0, (uint16_t)atoi(argv[4]), 0);
    check(connection, "no prefetch");
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(argv[2]), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(connection, "cannot consume");
    double start = 0, cpu = 0;
    for (uint64_t number = 1; number <= count; number++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        if (amqp_consume_message(connection, &envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL)
            fail("the connection was lost");
        if (number == 1) start = clock_seconds(), cpu = cpu_seconds();
        if (number % together == 0 || number == count)
            amqp_basic_ack(connection, 1, envelope.delivery_tag, together > 1);
        amqp_destroy_envelope(&envelope);
    }
    printf("%.6f %.6f\n", clock_seconds() - start, cpu_seconds() - cpu);
    /* The broker takes what was sent before this: all acks. */
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
