// Ollama's client for JavaScript against the server at argv[2].
import assert from "node:assert/strict";
import { Ollama } from "ollama";

const client = new Ollama({ host: process.argv[2] });
const messages = [{ role: "user", content: "one two three" }];

const whole = await client.chat({ model: "echo", messages });
assert.equal(whole.message.content, "one two three");
assert.equal(whole.done_reason, "stop");

let text = "";
for await (const part of await client.chat({ model: "slow", messages, stream: true })) text += part.message.content;
assert.equal(text, "one two three");

assert.equal((await client.generate({ model: "echo", prompt: "one" })).response, "one");
assert.deepEqual((await client.embed({ model: "echo", input: ["abc", "d"] })).embeddings, [[3, 1], [1, 1]]);

await client.copy({ source: "echo", destination: "js" });
assert.ok((await client.list()).models.some((model) => model.name === "js:latest"));
assert.deepEqual((await client.show({ model: "js" })).capabilities, ["completion"]);
await client.delete({ model: "js" });
assert.ok(!(await client.list()).models.some((model) => model.name === "js:latest"));

let last;
for await (const part of await client.pull({ model: "echo", stream: true })) last = part;
assert.equal(last.status, "success");

const told = (...events) => ({ model: "told", messages: [{ role: "user", content: JSON.stringify(events) }] });
const called = await client.chat(told(["call", [0, "c1", "add", '{"a":1}']], ["finish", "tool_calls"]));
assert.deepEqual(called.message.tool_calls[0].function.arguments, { a: 1 });

await assert.rejects(client.chat({ model: "nope", messages }), (error) => error.status_code === 404);
await assert.rejects(async () => {
  for await (const part of await client.chat({ ...told(["text", "well"], ["raise", "melted"]), stream: true })) void part;
}, /melted/);

const long = { model: "slow", messages: [{ role: "user", content: "w ".repeat(400) }], stream: true };
const stream = await client.chat(long);
await assert.rejects(async () => {
  for await (const part of stream) if (part.message.content) stream.abort();
}, { name: "AbortError" });
console.log("ok");
