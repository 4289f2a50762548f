// Prints what an exchange passes on to a queue of our own: node receive.js URL EXCHANGE COUNT KEY…
const amqp = require('amqplib');

async function main([url, exchange, count, ...keys]) {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue('', { exclusive: true });
  for (const key of keys) await channel.bindQueue(queue, exchange, key);
  let left = Number(count);
  await channel.consume(queue, async (message) => {
    const { properties, fields, content } = message;
    console.log(JSON.stringify({ key: fields.routingKey, properties, body: JSON.parse(content) }));
    channel.ack(message);
    if (--left === 0) {
      await channel.close(); // the acknowledgements go first
      await connection.close();
    }
  });
  console.log(' [*] Waiting');
}

main(process.argv.slice(2));
