// Says what is wrong with the AsyncAPI 3 document on standard input, and ends with 1 if anything is: by the official
// schema, and by what no schema can say: that each reference leads somewhere, and each operation's messages are its
// channel's.
const Ajv = require('ajv');
const addFormats = require('ajv-formats');
const { schemasWithoutId } = require('@asyncapi/specs');

const problems = [];
const text = require('fs').readFileSync(0, 'utf8');
const document = JSON.parse(text);

const ajv = new Ajv({ strict: false, allErrors: true });
addFormats(ajv);
const validate = ajv.compile(schemasWithoutId['3.0.0']);
if (!validate(document)) problems.push(...validate.errors.map((each) => `${each.instancePath || '/'} ${each.message}`));

const find = (reference) =>
  reference.slice(2).split('/').map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce((found, part) => found?.[part], document);

function follow(value, where) {
  if (value === null || typeof value !== 'object') return;
  if (typeof value.$ref === 'string' && (!value.$ref.startsWith('#/') || find(value.$ref) === undefined)) {
    problems.push(`${where} refers to ${value.$ref}, which is not there`);
  }
  for (const [name, inner] of Object.entries(value)) follow(inner, `${where}/${name}`);
}
follow(document, '');

for (const [name, operation] of Object.entries(document.operations ?? {})) {
  for (const part of [operation, operation.reply].filter(Boolean)) {
    for (const message of part.messages ?? []) {
      if (!message.$ref?.startsWith(`${part.channel?.$ref}/messages/`)) {
        problems.push(`/operations/${name} has ${message.$ref}, no message of its channel`);
      }
    }
  }
}

// Each payload must be a schema that says something definite.
const schemasOnly = new Ajv({ strict: false });
addFormats(schemasOnly);
for (const [name, message] of Object.entries(document.components?.messages ?? {})) {
  try {
    schemasOnly.compile({ ...message.payload, components: document.components });
  } catch (error) {
    problems.push(`/components/messages/${name}: ${error.message}`);
  }
}

problems.forEach((each) => console.log(each));
process.exitCode = problems.length ? 1 : 0;
