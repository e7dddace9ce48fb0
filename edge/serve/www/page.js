// A page for a person: a chat with any model of this server. What models say is put in as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const [model, talk, text, send, stop, key] = ["model", "talk", "text", "send", "stop", "key"].map(at);
const STATE_MS = 2000;
let messages = [];
let models = new Map();
let asking = null;
let last = null;

key.value = sessionStorage.getItem("key") || "";

function made(tag, words = "", kind = "") {
  const node = document.createElement(tag);
  node.textContent = words;
  if (kind) node.className = kind;
  return node;
}

function note(words, failed = false) {
  at("note").textContent = words;
  at("note").className = failed ? "failed" : "";
}

function fetched(path, options = {}) {
  const headers = { ...options.headers };
  if (key.value) headers.authorization = `Bearer ${key.value}`;
  return fetch(path, { ...options, headers, cache: "no-store" });
}

// The server's own words for a refusal.
async function refusal(response) {
  let words = `the server answers ${response.status}`;
  try {
    words = (await response.json()).error.message;
  } catch { /* no JSON: the status alone */ }
  if (response.status === 401) {
    at("more").open = true;
    key.placeholder = "sk-…";
    key.focus();
    words = "This server asks for a key: put it in under More.";
  }
  const wait_s = response.headers.get("retry-after");
  return new Error(wait_s ? `${words} (try again in ${wait_s} s)` : words);
}

function aboutOf(entry) {
  const own = entry.slm_edge || {};
  if (own.kind === "router") return "Chooses an adapter, or the base alone, for each message.";
  if (own.kind === "base") return "The base model alone.";
  return own.description || "";
}

async function loadModels() {
  const response = await fetched("v1/models");
  if (!response.ok) throw await refusal(response);
  const found = (await response.json()).data;
  const order = { router: 0, adapter: 1, base: 2 };
  found.sort((a, b) => (order[a.slm_edge?.kind] ?? 3) - (order[b.slm_edge?.kind] ?? 3));
  const chosen = model.value;
  models = new Map(found.map((entry) => [entry.id, entry]));
  model.replaceChildren(...found.map((entry) => new Option(entry.id, entry.id)));
  if (models.has(chosen)) model.value = chosen;
  showAbout();
}

function showAbout() {
  const entry = models.get(model.value);
  at("about").textContent = entry ? aboutOf(entry) : "";
}

// Text with fenced blocks of code, as nodes.
function show(target, said) {
  const parts = said.split(/^```[^\n]*\n?/m);
  target.replaceChildren(
    ...parts.map((part, i) => {
      if (i % 2 === 0) return made("p", part.replace(/^\n+|\n+$/g, ""));
      const block = document.createElement("pre");
      block.append(made("code", part.replace(/\n$/, "")));
      return block;
    }).filter((node) => node.textContent),
  );
}

function byline(own, id) {
  const by = own && own.adapter ? own.adapter : id || "base";
  const router = own && own.router;
  if (!router) return by;
  const sure = Math.round(100 * router.confidence);
  const next = router.runner_up ? `; next ${router.runner_up}, ${Math.round(100 * router.runner_up_confidence)} %` : "";
  return `${router.adapter || "base"} — chosen by the router (${sure} % sure${next}${router.stayed ? "; stayed with it" : ""})`;
}

// Server-sent events of a response, one JSON document each.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const data = rest.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      rest = rest.slice(end + 2);
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function request() {
  const body = { model: model.value, messages: [...messages], stream: true, stream_options: { include_usage: true } };
  const system = at("system").value.trim();
  if (system) body.messages.unshift({ role: "system", content: system });
  if (at("most").value) body.max_tokens = Number(at("most").value);
  if (at("warmth").value) body.temperature = Number(at("warmth").value);
  return body;
}

async function ask(words) {
  messages.push({ role: "user", content: words });
  talk.append(made("li", words, "asked"));
  const item = made("li", "", "said");
  const by = made("p", `${model.value} …`, "by");
  const said = made("div");
  // Read aloud when it is whole, not letter by letter.
  item.setAttribute("aria-busy", "true");
  item.append(by, said);
  talk.append(item);
  talk.scrollTop = talk.scrollHeight;
  asking = new AbortController();
  [send.hidden, stop.hidden] = [true, false];
  note("");
  let answer = "";
  let own = null;
  let ended = "";
  try {
    const response = await fetched("v1/chat/completions", {
      method: "POST", body: JSON.stringify(request()), headers: { "content-type": "application/json" }, signal: asking.signal,
    });
    if (!response.ok) throw await refusal(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.slm_edge) {
        own = { ...own, ...event.slm_edge };
        by.textContent = byline(own, event.model);
      }
      const choice = event.choices?.[0];
      if (choice?.delta?.content) {
        const follows = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
        answer += choice.delta.content;
        show(said, answer);
        if (follows) talk.scrollTop = talk.scrollHeight;
      }
      ended = choice?.finish_reason || ended;
    }
    if (ended === "length") note("The answer is cut at its longest length.");
  } catch (error) {
    if (error.name === "AbortError") {
      note("Stopped.");
      ended = "stopped";
    } else {
      note(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
      ended = "failed";
    }
  } finally {
    asking = null;
    [send.hidden, stop.hidden] = [false, true];
    item.removeAttribute("aria-busy");
  }
  if (!answer) {
    // Nothing was said: the question goes back into the box.
    messages.pop();
    item.previousSibling.remove();
    item.remove();
    if (!text.value) text.value = words;
  } else {
    messages.push({ role: "assistant", content: answer });
    const speed = own?.tokens_per_s ? ` · ${own.tokens_per_s.toFixed(0)} tokens/s` : "";
    by.textContent = byline(own, model.value) + speed + (ended === "stopped" ? " · stopped" : "");
  }
  text.focus();
}

const MiB = (bytes) => `${Math.round(bytes / 1048576)} MiB`;

async function showState() {
  if (document.hidden) return;
  let parts;
  try {
    const response = await fetched("v1/slm/state");
    if (!response.ok) return;
    const now = await response.json();
    parts = [["state", now.state], ["running", `${now.running} of ${now.places}`], ["waiting", `${now.waiting}`]];
    if (last && now.uptime_s > last.uptime_s) {
      parts.push(["speed", `${((now.answer_tokens - last.answer_tokens) / (now.uptime_s - last.uptime_s)).toFixed(0)} tokens/s`]);
    }
    if (now.memory.resident_bytes) parts.push(["memory", MiB(now.memory.resident_bytes)]);
    if (now.temperature_celsius !== null) parts.push(["temperature", `${now.temperature_celsius.toFixed(0)} °C`]);
    last = now;
  } catch {
    parts = [["state", "the server cannot be reached"]];
  }
  at("state").replaceChildren(...parts.map(([name, value]) => {
    const one = made("span", `${name} `);
    one.append(made("b", value));
    return one;
  }));
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = text.value.trim();
  if (!words || asking) return;
  text.value = "";
  ask(words);
});
text.addEventListener("keydown", (event) => {
  // Enter sends, Shift-Enter begins a line; an input method's Enter ends its word.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
stop.addEventListener("click", () => asking?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking?.abort();
});
at("new").addEventListener("click", () => {
  asking?.abort();
  messages = [];
  talk.replaceChildren();
  note("");
  text.focus();
});
at("settings").addEventListener("submit", (event) => event.preventDefault());
model.addEventListener("change", showAbout);
key.addEventListener("change", () => {
  sessionStorage.setItem("key", key.value);
  start();
});

async function start() {
  try {
    await loadModels();
    note("");
  } catch (error) {
    note(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
  }
  showState();
}

start();
setInterval(showState, STATE_MS);
