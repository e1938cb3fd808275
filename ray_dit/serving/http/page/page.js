// The page: asks /v1/images/generations for a stream and shows each image as it sharpens. No other code is loaded.

const $ = (id) => document.getElementById(id);
const PREVIEWS = 8;
const state = { models: [], label: null, found: [], active: -1, running: null, needsKey: false };

start();

async function start() {
  bindForm();
  bindLabels();
  bindViewer();
  try {
    state.models = (await getJson("v1/models")).data;
  } catch (error) {
    say(error.message, true);
    setTimeout(() => location.reload(), 3000); // the models may still be loading
    return;
  }
  $("model").replaceChildren(...state.models.map((model) => new Option(model.id, model.id)));
  $("model-field").hidden = state.models.length < 2;
  useModel();
  // Whether a call from elsewhere needs a key; asked without the browser's own credentials.
  state.needsKey = (await fetch("v1/models", { credentials: "omit" })).status === 401;
}

function model() {
  return state.models.find((one) => one.id === $("model").value) ?? state.models[0];
}

async function useModel() {
  const { num_classes, size, num_inference_steps, guidance_scale, sampler } = model();
  $("about").textContent = `${model().id}: ${num_classes || "no"} classes, ${size.replace("x", " × ")} pixels`;
  $("steps").max = Math.max(100, num_inference_steps);
  $("steps").value = num_inference_steps;
  $("guidance").value = guidance_scale;
  $("sampler").value = sampler;
  $("label-field").hidden = num_classes === 0;
  showValues();
  state.label = null;
  $("label").value = "";
  if (num_classes) choose((await search("", 1)).data[0]);
}

// ---- the form

function bindForm() {
  $("model").addEventListener("change", useModel);
  $("form").addEventListener("input", showValues);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    make();
  });
  $("stop").addEventListener("click", () => state.running?.abort());
  $("curl").addEventListener("click", copyCurl);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) make();
    if (event.key === "Escape" && !$("viewer").open && $("label-list").hidden) state.running?.abort();
  });
}

function showValues() {
  for (const output of document.querySelectorAll(".slider output")) {
    output.value = $(output.htmlFor.value).value;
  }
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function settings() {
  const asked = {
    model: model().id,
    n: Number($("n").value),
    num_inference_steps: Number($("steps").value),
    guidance_scale: Number($("guidance").value),
    sampler: $("sampler").value,
  };
  if (state.label) asked.class_labels = Array(asked.n).fill(state.label.id);
  if (/^[0-9]+$/.test($("seed").value)) asked.seed = Number($("seed").value);
  return asked;
}

async function copyCurl() {
  const asked = settings();
  if (state.label) {
    asked.prompt = state.label.name;
    delete asked.class_labels;
  }
  const key = state.needsKey ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  const body = JSON.stringify(asked).replaceAll("'", "'\\''");
  const url = new URL("v1/images/generations", location.href);
  const command =
    `curl -s ${url} \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${body}' \\\n` +
    `  | python3 -c 'import sys,json,base64\nfor i in json.load(sys.stdin)["data"]: ` +
    `open("image-%d.png" % i["index"],"wb").write(base64.b64decode(i["b64_json"]))'`;
  try {
    await navigator.clipboard.writeText(command);
    say("The command is on the clipboard; it writes image-0.png and so on.");
  } catch {
    prompt("The command:", command);
  }
}

// ---- choosing a class

function bindLabels() {
  const input = $("label");
  let timer;
  input.addEventListener("focus", () => input.select());
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(showFound, 120);
  });
  input.addEventListener("click", () => showFound(true));
  input.addEventListener("blur", () => setTimeout(() => closeList(true), 150));
  input.addEventListener("keydown", labelKey);
  $("label-list").addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus
  $("label-list").addEventListener("click", (event) => {
    const item = event.target.closest("[role=option]");
    if (item) choose(state.found[Number(item.dataset.place)]);
  });
  $("any-label").addEventListener("click", anyLabel);
}

function labelKey(event) {
  const open = !$("label-list").hidden;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (open) activate(state.active + (event.key === "ArrowDown" ? 1 : -1));
    else showFound(true);
  } else if (event.key === "Enter" && open) {
    event.preventDefault();
    event.stopPropagation();
    if (state.found.length) choose(state.found[Math.max(state.active, 0)]);
  } else if (event.key === "Escape" && open) {
    event.stopPropagation();
    closeList(true);
  }
}

function search(q, limit = 50) {
  const query = new URLSearchParams({ q, limit, model: model().id });
  return getJson(`v1/labels?${query}`);
}

async function showFound(all = false) {
  const q = all === true ? "" : $("label").value.trim();
  let answer;
  try {
    answer = await search(q);
  } catch (error) {
    say(error.message, true);
    return;
  }
  state.found = answer.data;
  const items = answer.data.map((label, place) => {
    const item = element("li", { role: "option", id: `label-${place}` });
    item.dataset.place = place;
    const [first, ...others] = label.name.split(",");
    const name = element("span", {}, first);
    if (others.length) name.append(element("span", { class: "more" }, others.join(",").trim()));
    item.append(name, element("span", { class: "number" }, label.id));
    return item;
  });
  if (!items.length) items.push(element("li", { class: "none" }, "No class is called that"));
  if (answer.total > items.length && answer.data.length) {
    items.push(element("li", { class: "none" }, `${answer.total - items.length} more: go on typing`));
  }
  $("label-list").replaceChildren(...items);
  $("label-list").hidden = false;
  $("label").setAttribute("aria-expanded", "true");
  const current = state.found.findIndex((label) => label.id === state.label?.id);
  activate(all === true ? current : 0);
}

function activate(place) {
  const options = $("label-list").querySelectorAll("[role=option]");
  if (!options.length) return;
  state.active = Math.min(Math.max(place, 0), options.length - 1);
  options.forEach((item, at) => item.setAttribute("aria-selected", String(at === state.active)));
  options[state.active].scrollIntoView({ block: "nearest" });
  $("label").setAttribute("aria-activedescendant", options[state.active].id);
}

function choose(label) {
  state.label = label;
  closeList(true);
}

function closeList(restore) {
  $("label-list").hidden = true;
  $("label").setAttribute("aria-expanded", "false");
  $("label").removeAttribute("aria-activedescendant");
  if (restore && state.label) $("label").value = state.label.name;
}

async function anyLabel() {
  const place = Math.floor(Math.random() * model().num_classes);
  const found = (await search(String(place), 1)).data;
  if (found.length) choose(found[0]);
}

// ---- making images

async function make() {
  if (state.running || !state.models.length) return;
  if (!$("form").reportValidity()) return;
  const asked = settings();
  const running = (state.running = new AbortController());
  $("go").disabled = true;
  $("stop").hidden = false;
  say("Waiting …");
  const batch = newBatch(asked);
  const began = performance.now();
  try {
    const answer = await fetch("v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...asked, stream: true, partial_images: PREVIEWS }),
      signal: running.signal,
    });
    if (!answer.ok) throw await problem(answer);
    for await (const event of events(answer.body)) batch.show(event);
    const seconds = (performance.now() - began) / 1000;
    say(`${asked.n} image${asked.n > 1 ? "s" : ""} in ${seconds.toFixed(1)} s`);
  } catch (error) {
    batch.fail();
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  } finally {
    state.running = null;
    $("go").disabled = false;
    $("stop").hidden = true;
  }
}

function newBatch(asked) {
  $("empty")?.remove();
  const name = state.label?.name ?? asked.model;
  const label = state.label;
  const article = $("batch-template").content.cloneNode(true).firstElementChild;
  const [title, caption] = [article.querySelector("h2"), article.querySelector("header p")];
  title.textContent = name;
  const tiles = Array.from({ length: asked.n }, (_, index) => newTile(name, index));
  article.querySelector(".grid").append(...tiles.map((tile) => tile.figure));
  article.classList.toggle("small", parseInt(model().size) < 128);
  const describe = (seed) => {
    const parts = [`${asked.num_inference_steps} steps`, `guidance ${asked.guidance_scale}`, asked.sampler];
    caption.textContent = [...parts, ...(seed === undefined ? [] : [`seed ${seed}`])].join(" · ");
  };
  describe(asked.seed);
  let seed = asked.seed;
  article.querySelector(".again").addEventListener("click", () => useAgain(asked, label, seed));
  $("results").prepend(article);
  if (matchMedia("(max-width: 52rem)").matches) article.scrollIntoView({ behavior: "smooth", block: "nearest" });
  let done = 0;
  return {
    show(event) {
      if (event.error) throw new Error(event.error.message);
      seed = event.seed;
      describe(seed);
      tiles[event.index].show(event, asked);
      done += event.type.endsWith("completed") ? 1 : 0;
      say(`${done} of ${asked.n} done …`);
    },
    fail() {
      for (const tile of tiles) tile.fail();
      if (!done && !article.querySelector("img:not([hidden])")) article.remove();
    },
  };
}

function newTile(name, index) {
  const figure = $("tile-template").content.cloneNode(true).firstElementChild;
  const [image, progress] = [figure.querySelector("img"), figure.querySelector("progress")];
  const [open, save] = [figure.querySelector(".open"), figure.querySelector(".save")];
  figure.classList.add("waiting");
  progress.setAttribute("aria-label", `Image ${index + 1}`);
  return {
    figure,
    show(event, asked) {
      figure.classList.remove("waiting");
      image.hidden = false;
      image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
      progress.value = event.step ? event.step / event.num_inference_steps : 1;
      if (!event.type.endsWith("completed")) return;
      figure.classList.add("done");
      progress.remove();
      const file = `${name.split(",")[0].trim().replaceAll(/[^\p{L}\p{N}]+/gu, "-")}-${event.seed}-${index}.png`;
      image.alt = `${name}, image ${index + 1}`;
      Object.assign(save, { href: image.src, download: file, hidden: false, title: "Download" });
      save.setAttribute("aria-label", `Download image ${index + 1}`);
      open.disabled = false;
      open.setAttribute("aria-label", `Look at image ${index + 1}`);
      open.addEventListener("click", () => view(image, file, `${name} · seed ${event.seed} · image ${index}`, asked));
    },
    fail() {
      if (figure.classList.contains("done")) return;
      figure.classList.remove("waiting");
      figure.classList.add("failed");
      progress.remove();
    },
  };
}

function useAgain(asked, label, seed) {
  if (label) choose(label);
  $("n").value = asked.n;
  $("steps").value = asked.num_inference_steps;
  $("guidance").value = asked.guidance_scale;
  $("sampler").value = asked.sampler;
  $("seed").value = seed ?? "";
  showValues();
  say("Settings and seed are in the form: the same images would come again.");
  $("go").focus();
}

// ---- looking at one image

function bindViewer() {
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => {
    if (event.target === $("viewer")) $("viewer").close();
  });
}

function view(image, file, caption) {
  $("viewer-image").src = image.src;
  $("viewer-image").alt = image.alt;
  $("viewer-image").classList.toggle("small", image.naturalWidth < 128);
  $("viewer-caption").textContent = caption;
  Object.assign($("viewer-save"), { href: image.src, download: file });
  $("viewer").showModal();
}

// ---- talking to the server

async function getJson(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

async function problem(answer) {
  const body = await answer.json().catch(() => null);
  const wait = answer.headers.get("retry-after");
  const text = body?.error?.message ?? `The server answered ${answer.status}.`;
  return new Error(answer.status === 429 && wait ? `${text} (in ${wait} s)` : text);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended early.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}
