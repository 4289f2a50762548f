// Calls a procedure once for each body, all at once, on one reply queue:
//   node rpc_client.js URL QUEUE BODY…            with a correlation id for each
//   node rpc_client.js --plain URL QUEUE BODY     without one, and so one call only
const amqp = require('amqplib');
const { randomUUID } = require('crypto');

async function main(given) {
  const plain = given[0] === '--plain';
  const [url, queue, ...bodies] = given.slice(plain ? 1 : 0);
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  channel.on('return', async (message) => {
    console.log(`${message.content} = nobody serves ${queue}`);
    await connection.close();
  });
  const replies = await channel.assertQueue('', { exclusive: true });
  const waiting = new Map(bodies.map((body) => [plain ? undefined : randomUUID(), body]));
  await channel.consume(replies.queue, async (message) => {
    const { correlationId } = message.properties;
    if (!waiting.has(correlationId)) return;
    console.log(`${waiting.get(correlationId)} = ${message.content}`);
    waiting.delete(correlationId);
    if (waiting.size === 0) await connection.close();
  }, { noAck: true });
  for (const [correlationId, body] of waiting) {
    channel.publish('', queue, Buffer.from(body), { correlationId, replyTo: replies.queue, mandatory: true });
  }
}

main(process.argv.slice(2));
