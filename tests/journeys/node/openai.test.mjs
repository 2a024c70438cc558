// What a service in Node does with the official client. Address and token come from the client's own variables of the environment.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const { MODEL: model, STATEMENT: statement, LIMITED_API_KEY: limited } = process.env;
const messages = [{ role: "user", content: "What is a compass?" }];
const client = new OpenAI({ maxRetries: 0, timeout: 90_000 });
const words = statement.split(" ");

test("models are listed", async () => {
  const names = [];
  for await (const found of client.models.list()) names.push(found.id);
  assert.ok(names.includes(model));
});

test("a chat is answered with its usage", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 45, temperature: 0 });
  assert.equal(answer.choices[0].message.content, statement);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a stream adds up to the answer and tells its usage last", async () => {
  const asked = { model, messages, max_tokens: 46, temperature: 0, stream: true, stream_options: { include_usage: true } };
  let text = "", usage = null;
  for await (const chunk of await client.chat.completions.create(asked)) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, statement);
  assert.ok(usage.completion_tokens > 0);
});

test("an answer ends before a stop string", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 40, temperature: 0, stop: [words[3]] });
  assert.equal(answer.choices[0].message.content, words.slice(0, 3).join(" "));
});

test("several choices are drawn with the probability of each token", async () => {
  const asked = { model, messages, max_tokens: 8, temperature: 1.5, seed: 7, n: 2, logprobs: true, top_logprobs: 2 };
  const answer = await client.chat.completions.create(asked);
  assert.equal(answer.choices.length, 2);
  for (const { logprobs } of answer.choices) {
    assert.ok(logprobs.content.length > 0);
    assert.ok(logprobs.content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
  }
});

test("texts are embedded, by the client's own base64 and as numbers alike", async () => {
  const input = "A compass points north.";
  const [encoded, plain] = await Promise.all(["base64", "float"].map((encoding_format) => client.embeddings.create({ model, input, encoding_format })));
  const decoded = Array.from(new Float32Array(Uint8Array.from(Buffer.from(encoded.data[0].embedding, "base64")).buffer));
  assert.ok(Math.abs(Math.hypot(...decoded) - 1) < 1e-4);
  assert.ok(decoded.every((value, i) => Math.abs(value - plain.data[0].embedding[i]) < 1e-6));
});

test("errors are the client's own kinds", async () => {
  const ask = (more) => client.chat.completions.create({ model, messages, ...more });
  await assert.rejects(ask({ model: "no-such-model" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found" && e.param === "model");
  await assert.rejects(ask({ messages: [] }), (e) => e instanceof OpenAI.BadRequestError && e.param === "messages");
  await assert.rejects(new OpenAI({ apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
});

test("a token's limit is told by headers and by the client's own error", async () => {
  const tight = new OpenAI({ apiKey: limited, maxRetries: 0 });
  const asked = { model, messages, max_tokens: 4, temperature: 0 };
  const { response } = await tight.chat.completions.create(asked).withResponse();
  assert.equal(response.headers.get("x-ratelimit-remaining-requests"), "0");
  const twiceMore = async () => { for (let i = 0; i < 2; i++) await tight.chat.completions.create(asked); };  // a minute may begin in between
  await assert.rejects(twiceMore(), (e) => e instanceof OpenAI.RateLimitError && Number(e.headers.get("retry-after")) >= 1);
});
