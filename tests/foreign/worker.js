// Shares a queue with other workers: node worker.js URL QUEUE. It acknowledges what it has done, and "stall" it never does.
const amqp = require('amqplib');

async function main([url, queue]) {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  await channel.assertQueue(queue, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
  await channel.prefetch(1);
  await channel.consume(queue, (message) => {
    const task = message.content.toString();
    console.log(` [x] Received ${task}`);
    if (task !== 'stall' || message.fields.redelivered) {
      channel.ack(message);
      console.log(` [x] Done ${task}`);
    }
  });
  console.log(' [*] Waiting');
}

main(process.argv.slice(2));
