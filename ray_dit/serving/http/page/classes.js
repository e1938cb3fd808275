// Choosing a class: by typing, or by a chip where there are few.

import { $, ask, element, getJson, model, say, state } from "./common.js";
import { sampleOf, keepSample } from "./history.js";

const FEW = 20;
const list = { found: [], active: -1 };
let changed = () => {};

export function bindClasses(onChange) {
  changed = onChange;
  const input = $("label");
  let timer;
  input.addEventListener("focus", () => input.select());
  input.addEventListener("input", () => {
    mark("");
    clearTimeout(timer);
    timer = setTimeout(showFound, 120);
  });
  input.addEventListener("click", () => showFound(true));
  input.addEventListener("blur", () => setTimeout(() => closeList(!input.value.trim()), 150));
  input.addEventListener("keydown", labelKey);
  $("label-list").addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus
  $("label-list").addEventListener("click", (event) => {
    const item = event.target.closest("[role=option]");
    if (item) choose(list.found[Number(item.dataset.place)]);
  });
  $("any-label").addEventListener("click", anyClass);
}

// The model is another: its classes, and the one that was asked for (a number, "each", or none).
export async function useClasses(wanted) {
  const { num_classes } = model();
  $("label-field").hidden = num_classes === 0;
  $("chips").hidden = true;
  Object.assign(state, { label: null, each: false });
  $("label").value = "";
  if (!num_classes) return;
  const few = num_classes <= FEW;
  if (few) showChips((await search("", FEW)).data);
  if (wanted === "each" && few) return chooseEach();
  const known = /^[0-9]+$/.test(wanted ?? "") && Number(wanted) < num_classes;
  choose(known ? await numbered(Number(wanted)) : (await search("", 1)).data[0]);
}

// Whether it is known which class is meant by what stands in the field; if not, the field says why.
export async function settled() {
  const typed = $("label").value.trim();
  if (!model().num_classes || state.each || (state.label && typed === state.label.name)) return true;
  const { data, total } = await search(typed, 50);
  const exact = data.filter((label) => spellings(label).includes(typed.toLowerCase()));
  if (typed && exact.length === 1) choose(exact[0]);
  else if (typed && total === 1) choose(data[0]);
  else if (!total) return mark(`No class is called “${typed}”.`);
  else {
    mark(typed ? `${total} classes are called like “${typed}”: choose one.` : "Choose a class.");
    $("label").focus();
    await showFound();
    return false;
  }
  return true;
}

export function choose(label) {
  Object.assign(state, { label, each: false });
  chosen(label.name);
}

export function chooseEach() {
  Object.assign(state, { label: null, each: true });
  chosen("One of each");
}

export async function numbered(place) {
  return (await search(String(place), FEW)).data.find((label) => label.id === place);
}

function chosen(text) {
  mark("");
  closeList(false);
  $("label").value = text;
  $("n-field").hidden = state.each;
  const current = state.each ? "each" : String(state.label.id);
  for (const chip of $("chips").children) chip.setAttribute("aria-pressed", String(chip.dataset.label === current));
  changed();
}

function mark(text) {
  $("label-problem").textContent = text;
  $("label-problem").hidden = !text;
  $("label").setAttribute("aria-invalid", String(Boolean(text)));
  if (text) $("label").focus();
  return false;
}

function spellings(label) {
  const names = [label.name, ...label.name.split(","), String(label.id), label.wordnet_id ?? ""];
  return names.map((name) => name.trim().toLowerCase());
}

function search(q, limit = 50) {
  const query = new URLSearchParams({ q, limit, model: model().id });
  return getJson(`v1/labels?${query}`);
}

async function anyClass() {
  choose(await numbered(Math.floor(Math.random() * model().num_classes)));
}

// ---- the list below the field

function labelKey(event) {
  const open = !$("label-list").hidden;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (open) activate(list.active + (event.key === "ArrowDown" ? 1 : -1));
    else showFound(true);
  } else if (event.key === "Enter" && open && list.found.length && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    event.stopPropagation();
    choose(list.found[Math.max(list.active, 0)]);
  } else if (event.key === "Escape" && open) {
    event.stopPropagation();
    closeList(true);
  }
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
  list.found = answer.data;
  const items = answer.data.map((label, place) => {
    const item = element("li", { role: "option", id: `label-${place}` });
    item.dataset.place = place;
    const [first, ...others] = label.name.split(",");
    const name = element("span", {}, first);
    if (others.length) name.append(element("span", { class: "more" }, others.join(",").trim()));
    item.append(name, element("span", { class: "number" }, label.id));
    return item;
  });
  if (!items.length) items.push(element("li", { class: "none" }, `No class is called “${q}”`));
  if (answer.total > items.length && answer.data.length) {
    items.push(element("li", { class: "none" }, `${answer.total - items.length} more: go on typing`));
  }
  $("label-list").replaceChildren(...items);
  $("label-list").hidden = false;
  $("label").setAttribute("aria-expanded", "true");
  const current = list.found.findIndex((label) => label.id === state.label?.id);
  activate(all === true ? current : 0);
}

function activate(place) {
  const options = $("label-list").querySelectorAll("[role=option]");
  if (!options.length) return;
  list.active = Math.min(Math.max(place, 0), options.length - 1);
  options.forEach((item, at) => item.setAttribute("aria-selected", String(at === list.active)));
  options[list.active].scrollIntoView({ block: "nearest" });
  $("label").setAttribute("aria-activedescendant", options[list.active].id);
}

function closeList(restore) {
  $("label-list").hidden = true;
  $("label").setAttribute("aria-expanded", "false");
  $("label").removeAttribute("aria-activedescendant");
  if (!restore) return;
  mark("");
  $("label").value = state.each ? "One of each" : (state.label?.name ?? "");
}

// ---- chips, with a sample each

function showChips(labels) {
  const each = element("button", { type: "button", class: "chip" }, "One of each");
  each.dataset.label = "each";
  each.addEventListener("click", chooseEach);
  const short = (label) => label.name.split(",")[0];
  const alone = (label) => labels.filter((other) => short(other) === short(label)).length === 1;
  const chips = labels.map((label) => {
    const chip = element("button", { type: "button", class: "chip", title: label.name });
    chip.dataset.label = label.id;
    chip.append(element("img", { alt: "" }), element("span", {}, alone(label) ? short(label) : label.name));
    chip.addEventListener("click", () => choose(label));
    return chip;
  });
  $("chips").replaceChildren(each, ...chips);
  $("chips").hidden = false;
  addSamples(model(), labels, chips).catch(() => {}); // chips are as good without
}

// Made once for a model, one image after another, and kept in the browser.
async function addSamples({ id, created, num_inference_steps }, labels, chips) {
  for (const [place, label] of labels.entries()) {
    const name = `${id} ${created} ${label.id}`;
    let source = await sampleOf(name);
    if (!source) {
      while (state.running) await new Promise((later) => setTimeout(later, 500));
      if (!chips[place].isConnected) return; // another model's are shown now
      const steps = Math.min(num_inference_steps, 25);
      const body = { model: id, class_labels: [label.id], seed: 0, num_inference_steps: steps, output_format: "webp" };
      for await (const event of ask(body)) source = `data:image/${event.output_format};base64,${event.b64_json}`;
      await keepSample(name, source);
    }
    chips[place].querySelector("img").src = source;
  }
}
