// The images: batches of them, a tile each, and one of them large.

import { $ } from "./common.js";

const viewed = { shots: [], place: 0 };

// `batch`: what was asked, under which names, with which seed; `asked` is as the form's settings are.
export function addBatch(batch, { useAgain, share }) {
  $("empty").hidden = true;
  $("forget").hidden = false;
  const article = $("batch-template").content.cloneNode(true).firstElementChild;
  const [title, caption] = [article.querySelector("h2"), article.querySelector("header p")];
  title.textContent = batch.title;
  const shots = batch.names.map((name, index) => newTile(batch, name, index));
  article.querySelector(".grid").append(...shots.map((shot) => shot.figure));
  article.classList.toggle("pixels", batch.size < 128);
  article.querySelector(".again").addEventListener("click", () => useAgain(batch));
  article.querySelector(".share").addEventListener("click", () => share(batch));
  for (const shot of shots) shot.open.addEventListener("click", () => view(shots, shot));
  const describe = () => (caption.textContent = described(batch));
  describe();
  $("results").prepend(article);
  return {
    batch,
    show(index, event) {
      if (batch.seed !== event.seed) {
        batch.seed = event.seed;
        describe();
      }
      shots[index].show(event);
    },
    restore(images) {
      images.forEach((source, index) => (source ? shots[index].finish(source) : shots[index].stop("not made")));
    },
    // The images that are done, null for others, which say that they were stopped. None at all leave nothing.
    end() {
      const images = shots.map((shot) => shot.source);
      for (const shot of shots) if (!shot.source) shot.stop("stopped");
      if (!article.querySelector("img:not([hidden])")) article.remove();
      return images;
    },
  };
}

export function described({ asked, seed }) {
  const parts = [`${asked.num_inference_steps} steps`];
  if (asked.guidance_scale !== undefined) parts.push(`guidance ${asked.guidance_scale}`);
  parts.push(asked.sampler);
  if (seed !== undefined) parts.push(`seed ${seed}`);
  return parts.join(" · ");
}

function newTile(batch, name, index) {
  const figure = $("tile-template").content.cloneNode(true).firstElementChild;
  const [image, progress] = [figure.querySelector("img"), figure.querySelector("progress")];
  const [open, save] = [figure.querySelector(".open"), figure.querySelector(".save")];
  const said = figure.querySelector("figcaption");
  figure.classList.add("waiting");
  progress.setAttribute("aria-label", `Image ${index + 1}`);
  const write = (text) => {
    said.textContent = text;
    said.hidden = !text;
  };
  const short = name.split(",")[0].trim();
  if (batch.each) write(short);
  const shot = {
    figure, open, image, name, batch, index, source: null, file: "", step: 0,
    show(event) {
      const source = `data:image/${event.output_format};base64,${event.b64_json}`;
      if (event.type.endsWith("completed")) return shot.finish(source);
      figure.classList.remove("waiting");
      shot.step = event.step;
      image.hidden = false;
      image.src = source;
      progress.value = event.step / event.num_inference_steps;
    },
    finish(source) {
      shot.source = source;
      shot.file = `${short.replaceAll(/[^\p{L}\p{N}]+/gu, "-")}-${batch.seed}-${index + 1}.png`;
      figure.classList.remove("waiting");
      figure.classList.add("done");
      progress.remove();
      Object.assign(image, { src: source, hidden: false, alt: `${name}, image ${index + 1}` });
      Object.assign(save, { href: source, download: shot.file, hidden: false, title: "Download" });
      save.setAttribute("aria-label", `Download image ${index + 1}`);
      open.disabled = false;
      open.setAttribute("aria-label", `Look at image ${index + 1}`);
    },
    stop(why) {
      figure.classList.remove("waiting");
      figure.classList.add("failed");
      progress.remove();
      write(shot.step ? `${why} after step ${shot.step} of ${batch.asked.num_inference_steps}` : why);
    },
  };
  return shot;
}

// ---- looking at one image

export function bindViewer() {
  const viewer = $("viewer");
  $("viewer-close").addEventListener("click", () => viewer.close());
  $("viewer-before").addEventListener("click", () => turn(-1));
  $("viewer-next").addEventListener("click", () => turn(1));
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
}

function view(shots, shot) {
  viewed.shots = shots.filter((one) => one.source);
  viewed.place = viewed.shots.indexOf(shot);
  turn(0);
  $("viewer").showModal();
}

function turn(by) {
  const { shots } = viewed;
  viewed.place = (viewed.place + by + shots.length) % shots.length;
  const shot = shots[viewed.place];
  Object.assign($("viewer-image"), { src: shot.source, alt: shot.image.alt });
  $("viewer-image").classList.toggle("pixels", shot.batch.size < 128);
  $("viewer-name").textContent = shot.name;
  $("viewer-caption").textContent = `image ${shot.index + 1} of ${shot.batch.names.length} · ${described(shot.batch)}`;
  Object.assign($("viewer-save"), { href: shot.source, download: shot.file });
  $("viewer-before").hidden = $("viewer-next").hidden = shots.length < 2;
}
