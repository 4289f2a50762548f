// Publishes one event: node publish.js URL EXCHANGE KEY BODY [PROPERTIES as JSON] [COPIES]
const amqp = require('amqplib');

async function main([url, exchange, key, body, properties = '{}', copies = '1']) {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  let returned = 0;
  channel.on('return', () => returned++);
  for (let copy = 0; copy < Number(copies); copy++) {
    channel.publish(exchange, key, Buffer.from(body), { mandatory: true, ...JSON.parse(properties) });
  }
  await channel.waitForConfirms();
  console.log(` [x] Sent ${copies} by ${key}, ${returned} returned`);
  await connection.close();
}

main(process.argv.slice(2));
