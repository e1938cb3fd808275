// What the parts of the page share: its state, its elements, and how it talks to the server.

export const $ = (id) => document.getElementById(id);
export const state = { models: [], label: null, each: false, running: null, needsKey: false };

export function model() {
  return state.models.find((one) => one.id === $("model").value) ?? state.models[0];
}

export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

export function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

export async function copy(text, said, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(said);
  } catch {
    prompt(what, text);
  }
}

export async function getJson(url) {
  const answer = await reached(fetch(url));
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

// The events of a request for images, as they come.
export async function* ask(body, signal) {
  const answer = await reached(
    fetch("v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    }),
  );
  if (!answer.ok) throw await problem(answer);
  yield* events(answer.body);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    if (done) throw new Error("The connection ended early.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
      if (data === "[DONE]") return;
      const event = data ? JSON.parse(data) : null;
      if (event?.error) throw new Error(event.error.message);
      if (event) yield event;
    }
  }
}

// What a browser says of a server that is gone ("Failed to fetch") tells nobody anything.
async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(
      navigator.onLine
        ? "The server does not answer: it has stopped, or the network to it is down."
        : "This device is offline.",
    );
  }
}

async function problem(answer) {
  const body = await answer.json().catch(() => null);
  const wait = answer.headers.get("retry-after");
  const text = body?.error?.message ?? `The server answered ${answer.status}.`;
  return new Error(answer.status === 429 && wait ? `${text} (in ${wait} s)` : text);
}
