// The page: asks /v1/images/generations for a stream and shows each image as it sharpens. All code is the server's own.

import { $, ask, copy, getJson, model, say, state } from "./common.js";
import { bindClasses, numbered, settled, useClasses } from "./classes.js";
import { addBatch, bindViewer } from "./gallery.js";
import { forgetBatches, keepBatch, keptBatches } from "./history.js";

const PREVIEWS = 8;
const AGAIN_MS = 3000;
const SETTLING_MS = 300; // a second click on "Make images" does not stop them

start();

async function start() {
  bindForm();
  bindClasses(rememberSettings);
  bindViewer();
  const wide = matchMedia("(min-width: 52rem)");
  $("more").open = wide.matches; // on a phone the images come first
  wide.addEventListener("change", () => ($("more").open = wide.matches));
  for (const { images, ...batch } of await keptBatches()) addBatch(batch, { useAgain, share }).restore(images);
  await load();
}

async function load() {
  try {
    state.models = (await getJson("v1/models")).data;
    // Whether a call from elsewhere needs a key; asked without the browser's own credentials.
    state.needsKey = (await fetch("v1/models", { credentials: "omit" })).status === 401;
    say("");
  } catch (error) {
    say(`${error.message} Trying again …`, true);
    setTimeout(load, AGAIN_MS); // the models may still be loading
    return;
  }
  $("model").replaceChildren(...state.models.map((one) => new Option(one.id, one.id)));
  $("model-field").hidden = state.models.length < 2;
  await useSettings(new URLSearchParams(location.search));
  $("go").disabled = false; // before, it is not known what can be made
}

// ---- the form

function bindForm() {
  $("model").addEventListener("change", () => useSettings(new URLSearchParams({ model: $("model").value })));
  $("form").addEventListener("input", () => {
    showValues();
    rememberSettings();
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    make();
  });
  $("stop").addEventListener("click", () => state.running?.abort());
  $("link").addEventListener("click", () => copyLink(settings()));
  $("curl").addEventListener("click", copyCurl);
  $("forget").addEventListener("click", forget);
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

// The model's own settings, but for those that `asked` has; controls that mean nothing for it are not shown.
async function useSettings(asked) {
  if (state.models.some((one) => one.id === asked.get("model"))) $("model").value = asked.get("model");
  const { num_classes, size, num_inference_steps, guidance_scale, guidable, sampler, max_images, max_inference_steps } =
    model();
  $("about").textContent = `${model().id}: ${num_classes || "no"} classes, ${size.replace("x", " × ")} pixels`;
  $("n").max = max_images;
  $("n").value = asked.get("n") ?? 4;
  $("steps").max = Math.min(max_inference_steps, Math.max(100, num_inference_steps, asked.get("steps") ?? 0));
  $("steps").value = asked.get("steps") ?? num_inference_steps;
  $("guidance").value = asked.get("guidance") ?? guidance_scale;
  $("guidance-field").hidden = !guidable;
  $("sampler").value = asked.get("sampler") ?? sampler;
  if ($("sampler").selectedIndex < 0) $("sampler").value = sampler;
  $("seed").value = /^[0-9]{1,15}$/.test(asked.get("seed") ?? "") ? asked.get("seed") : "";
  showValues();
  try {
    await useClasses(asked.get("class"));
  } catch (error) {
    say(error.message, true);
  }
  rememberSettings();
}

function settings() {
  const asked = {
    model: model().id,
    n: Number($("n").value),
    num_inference_steps: Number($("steps").value),
    sampler: $("sampler").value,
  };
  if (model().guidable) asked.guidance_scale = Number($("guidance").value);
  if (/^[0-9]+$/.test($("seed").value)) asked.seed = Number($("seed").value);
  if (state.each) asked.class = "each";
  else if (state.label) asked.class = state.label.id;
  return asked;
}

// ---- settings as a link

function linkTo(asked) {
  const names = { model: "model", class: "class", n: "n", steps: "num_inference_steps", guidance: "guidance_scale",
                  sampler: "sampler", seed: "seed" };
  const query = new URLSearchParams();
  for (const [short, name] of Object.entries(names)) {
    if (asked[name] !== undefined) query.set(short, asked[name]);
  }
  return new URL(`?${query}`, location.href);
}

function rememberSettings() {
  if (state.models.length) history.replaceState(null, "", linkTo(settings()));
}

function copyLink(asked) {
  copy(String(linkTo(asked)), "The link is on the clipboard; it leads to these settings.", "The link:");
}

function share({ asked, seed }) {
  copyLink({ ...asked, seed });
}

async function useAgain({ asked, seed }) {
  const query = linkTo({ ...asked, seed }).searchParams;
  await useSettings(query);
  say("Settings and seed are in the form: the same images would come again.");
  $("go").focus();
}

async function copyCurl() {
  if (!(await settled())) return;
  const { class: label, ...asked } = settings();
  if (label === "each") asked.class_labels = eachClass();
  else if (state.label) asked.prompt = state.label.name;
  if (label === "each") delete asked.n;
  const key = state.needsKey ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  const body = JSON.stringify(asked).replaceAll("'", "'\\''");
  const url = new URL("v1/images/generations", location.href);
  const command =
    `curl -s ${url} \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${body}' \\\n` +
    `  | python3 -c 'import sys,json,base64\nfor i in json.load(sys.stdin)["data"]: ` +
    `open("image-%d.png" % i["index"],"wb").write(base64.b64decode(i["b64_json"]))'`;
  await copy(command, "The command is on the clipboard; it writes image-0.png and so on.", "The command:");
}

// ---- making images

async function make() {
  if (state.running || !state.models.length) return;
  const running = (state.running = new AbortController());
  let shown = null;
  try {
    if (!(await settled()) || !seedIsOne()) return;
    const asked = settings();
    const labels = labelsOf(asked);
    const batch = await newBatch(asked, labels);
    busy(true);
    say("Waiting …");
    shown = addBatch(batch, { useAgain, share });
    if (!matchMedia("(min-width: 52rem)").matches) $("form").scrollIntoView({ block: "start" });
    const began = performance.now();
    await sharpen(batch, labels, shown, running.signal);
    const seconds = (performance.now() - began) / 1000;
    say(`${batch.names.length} image${batch.names.length > 1 ? "s" : ""} in ${seconds.toFixed(1)} s`);
    await keepBatch({ ...batch, images: shown.end() });
    shown = null;
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  } finally {
    if (shown) await keepStopped(shown);
    state.running = null;
    busy(false);
  }
}

async function keepStopped(shown) {
  const images = shown.end();
  if (images.some(Boolean)) await keepBatch({ ...shown.batch, images });
  const left = document.querySelector(".batch") !== null;
  $("empty").hidden = left;
  $("forget").hidden = !left;
}

// One request, or as many as the server's limits make of it; image i of each is a function of (seed, i).
async function sharpen(batch, labels, shown, signal) {
  const { asked } = batch;
  const most = Math.max(1, Math.min(model().max_images, Math.floor(model().max_total_steps / asked.num_inference_steps)));
  const { class: _, n, ...common } = asked;
  let done = 0;
  for (let first = 0; first < batch.names.length; first += batch.each ? most : batch.names.length) {
    const body = { ...common, partial_images: Math.min(PREVIEWS, model().max_partial_images) };
    if (batch.each) body.class_labels = labels.slice(first, first + most);
    else if (labels) Object.assign(body, { n, class_labels: labels.slice(0, 1) });
    else body.n = n;
    if (batch.seed !== undefined) body.seed = batch.seed;
    for await (const event of ask(body, signal)) {
      shown.show(first + event.index, event);
      done += event.type.endsWith("completed") ? 1 : 0;
      say(`${done} of ${batch.names.length} done …`);
    }
  }
}

function eachClass() {
  return Array.from({ length: model().num_classes }, (_, place) => place);
}

function labelsOf(asked) {
  if (asked.class === undefined) return null;
  return asked.class === "each" ? eachClass() : Array(asked.n).fill(asked.class);
}

async function newBatch(asked, labels) {
  const each = asked.class === "each";
  const names = each
    ? await Promise.all(labels.map(async (place) => (await numbered(place)).name))
    : Array(asked.n).fill(state.label?.name ?? asked.model);
  const title = each ? "One of each" : names[0];
  return { asked, each, names, title, seed: asked.seed, size: parseInt(model().size) };
}

function seedIsOne() {
  const right = $("seed").checkValidity();
  if (!right) {
    $("more").open = true;
    $("seed").focus();
    say("A seed is a whole number; empty for a random one.", true);
  }
  return right;
}

// Make and Stop are one place; which of them stands there has the focus if the other had it.
function busy(running) {
  const [from, to] = running ? [$("go"), $("stop")] : [$("stop"), $("go")];
  const focused = document.activeElement === from;
  from.hidden = true;
  to.hidden = false;
  to.disabled = running;
  const enable = () => {
    to.disabled = false;
    if (focused) to.focus();
  };
  if (running) setTimeout(enable, SETTLING_MS);
  else enable();
}

async function forget() {
  await forgetBatches();
  for (const batch of document.querySelectorAll(".batch")) batch.remove();
  $("empty").hidden = false;
  $("forget").hidden = true;
}
