// npm's clients as they are, against a running server: node client_checks.mjs URL MODEL [--tools], as a file in the
// folder that has `openai`, `ai`, `@ai-sdk/openai-compatible` and `zod`. A line of JSON for each, as client_checks.py.
import { readFileSync } from "node:fs";

const [url, model, ...options] = process.argv.slice(2);
const withTools = options.includes("--tools");
const load = async (name) => [
  await import(name),
  JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version,
];
const question = "How many legs have 3 cats?";
const messages = [{ role: "user", content: question }];
const need = (right, said) => {
  if (!right) throw new Error(`not right: ${JSON.stringify(said) ?? ""}`.slice(0, 300));
};
const parameters = {
  type: "object",
  properties: { n: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["n"],
  additionalProperties: false,
};
const clients = {
  openai: async () => {
    const [{ default: OpenAI, NotFoundError }, version] = await load("openai");
    const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
    const create = (more) => client.chat.completions.create({ model, messages, max_tokens: 9, ...more });
    const tools = [{ type: "function", function: { name: "count", description: "Counts.", parameters } }];
    return [version, {
      models: async () => need((await client.models.list()).data.some((one) => one.id === model)),
      chat: async () => need((await create()).choices[0].message.content),
      stream: async () => {
        let text = "", usage = null;
        for await (const one of await create({ stream: true, stream_options: { include_usage: true } })) {
          text += one.choices[0]?.delta?.content ?? "";
          usage = one.usage ?? usage;
        }
        need(text && usage?.completion_tokens, { text, usage });
      },
      tools: async () => {
        const made = await create({ tools, tool_choice: "required", max_tokens: 300 });
        need(JSON.parse(made.choices[0].message.tool_calls[0].function.arguments).n <= 9, made);
      },
      schema: async () => {
        const json_schema = { name: "legs", schema: parameters, strict: true };
        const made = await create({ response_format: { type: "json_schema", json_schema }, max_tokens: 300 });
        need(JSON.parse(made.choices[0].message.content).n <= 9, made);
      },
      responses: async () => {
        const made = await client.responses.create({ model, input: question, max_output_tokens: 16 });
        need(made.output_text, made);
      },
      refusal: async () => {
        try {
          await create({ model: "nobody" });
        } catch (error) {
          return need(error instanceof NotFoundError, error);
        }
        need(false, "an unknown model was answered");
      },
    }];
  },
  "ai-sdk": async () => {
    const [{ createOpenAICompatible }, version] = await load("@ai-sdk/openai-compatible");
    const [ai] = await load("ai");
    const { z } = (await load("zod"))[0];
    const provider = createOpenAICompatible({
      name: "slm-edge", baseURL: url, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true,
    });
    const chat = provider.chatModel(model);
    const ask = { model: chat, prompt: question, maxRetries: 0 };
    return [version, {
      chat: async () => need((await ai.generateText({ ...ask, maxOutputTokens: 9 })).text),
      stream: async () => {
        const running = ai.streamText({ ...ask, maxOutputTokens: 9 });
        let text = "";
        for await (const piece of running.textStream) text += piece;
        need(text && (await running.usage).outputTokens, text);
      },
      tools: async () => {
        const count = ai.tool({ description: "Counts.", inputSchema: z.object({ n: z.number().int().min(0).max(9) }) });
        const made = await ai.generateText({ ...ask, tools: { count }, toolChoice: "required", maxOutputTokens: 300 });
        need(made.toolCalls[0].input.n <= 9, made.toolCalls);
      },
      schema: async () => {
        const schema = z.object({ legs: z.number().int().min(0).max(99), sure: z.boolean() });
        const made = await ai.generateText({ ...ask, output: ai.Output.object({ schema }), maxOutputTokens: 300 });
        need(typeof made.output.sure === "boolean", made.output);
      },
      completions: async () => {
        const made = await ai.generateText({ ...ask, model: provider.completionModel(model), maxOutputTokens: 4 });
        need(made.text);
      },
    }];
  },
};
for (const [client, make] of Object.entries(clients)) {
  const checks = {};
  let version = null;
  try {
    const [found, all] = await make();
    version = found;
    for (const [what, check] of Object.entries(all)) {
      if (what === "tools" && !withTools) {
        checks[what] = "the model's template has none";
        continue;
      }
      try {
        await check();
        checks[what] = "ok";
      } catch (error) {
        checks[what] = `${error.name}: ${error.message}`.slice(0, 400);
      }
    }
  } catch (error) {
    checks.import = `${error.message}`.slice(0, 300);
  }
  console.log(JSON.stringify({ client: `npm ${client}`, version, checks }));
}
