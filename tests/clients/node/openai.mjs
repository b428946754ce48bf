// OpenAI's client for JavaScript against the server at argv[2].
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 60_000 });
const weather = JSON.parse(process.argv[3]);
const asked = { model: "smollm2", temperature: 0, messages: [{ role: "user", content: "What is the capital of France?" }] };

const answer = await client.chat.completions.create({ ...asked, max_completion_tokens: 30 });
assert.ok(answer.choices[0].message.content.length > 5);
assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));

const stream = await client.chat.completions.create({
  ...asked, max_completion_tokens: 30, stream: true, stream_options: { include_usage: true },
});
let text = "", usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, answer.choices[0].message.content);
assert.equal(usage.completion_tokens, answer.usage.completion_tokens);

const tools = [{ type: "function", function: { name: "get_weather", parameters: weather } }];
const called = client.chat.completions.stream({ ...asked, max_completion_tokens: 80, tools, tool_choice: "required", parallel_tool_calls: false });
const final = await called.finalChatCompletion();
const [call] = final.choices[0].message.tool_calls;
assert.equal(final.choices[0].finish_reason, "tool_calls");
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city", "unit"]);
const round = await client.chat.completions.create({
  ...asked, max_completion_tokens: 8, tools,
  messages: [...asked.messages, final.choices[0].message, { role: "tool", tool_call_id: call.id, content: "21 degrees" }],
});
assert.ok(["stop", "length", "tool_calls"].includes(round.choices[0].finish_reason));

const vectors = await client.embeddings.create({ model: "smollm2", input: ["a cat", "a dog"] });
assert.deepEqual(vectors.data.map((one) => one.embedding.length), [576, 576]);

const response = await client.responses.create({ model: "smollm2", input: "Say hi", max_output_tokens: 5, temperature: 0 });
const next = client.responses.stream({ model: "smollm2", input: "Again", max_output_tokens: 5, previous_response_id: response.id });
assert.equal((await next.finalResponse()).previous_response_id, response.id);

const failing = async (fields) => { await client.chat.completions.create({ ...asked, ...fields }); };
await assert.rejects(failing({ model: "nope" }), (error) => error.status === 404 && error.code === "model_not_found");
await assert.rejects(failing({ temperature: 3 }), (error) => error.status === 400 && error.param === "temperature");

const endless = await client.chat.completions.create({ ...asked, model: "slow", messages: [{ role: "user", content: "w ".repeat(400) }], stream: true });
for await (const chunk of endless) if (chunk.choices[0].delta.content) break;
console.log("ok");
