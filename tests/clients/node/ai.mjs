// Vercel's AI SDK against the server at argv[2].
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({ name: "myllm", baseURL: process.argv[2], apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const schema = jsonSchema(JSON.parse(process.argv[3]));
const asked = { model: provider("smollm2"), temperature: 0, maxOutputTokens: 30, maxRetries: 0, prompt: "What is the capital of France?" };

const answer = await generateText(asked);
assert.ok(answer.text.length > 5);
assert.ok(["stop", "length"].includes(answer.finishReason));

const stream = streamText(asked);
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, answer.text);
assert.equal((await stream.usage).outputTokens, answer.usage.outputTokens);

const tools = { get_weather: tool({ description: "The weather", inputSchema: schema }) };
const called = await generateText({ ...asked, maxOutputTokens: 80, tools, toolChoice: "required" });
assert.equal(called.toolCalls[0].toolName, "get_weather");
assert.deepEqual(Object.keys(called.toolCalls[0].input), ["city", "unit"]);

const streamed = streamText({ ...asked, maxOutputTokens: 80, tools, toolChoice: { type: "tool", toolName: "get_weather" } });
const calls = await streamed.toolCalls;
assert.deepEqual(Object.keys(calls[0].input), ["city", "unit"]);

const made = await generateObject({ ...asked, maxOutputTokens: 80, schema });
assert.deepEqual(Object.keys(made.object), ["city", "unit"]);

const vector = await embed({ model: provider.textEmbeddingModel("smollm2"), value: "a cat", maxRetries: 0 });
assert.equal(vector.embedding.length, 576);

await assert.rejects(generateText({ ...asked, model: provider("nope") }), (error) => error.statusCode === 404);
console.log("ok");
