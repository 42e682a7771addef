"use strict";
// What views are made of. What a trace says goes into the page as text, never as HTML.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const encoder = new TextEncoder();

// ---- building blocks

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const clamp = (number, low, high) => Math.max(low, Math.min(high, number));
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// Scrolls a box, and nothing around it, so far that a part of it is seen.
function reveal(box, part) {
  if (!part) return;
  const [frame, at] = [box.getBoundingClientRect(), part.getBoundingClientRect()];
  if (at.top < frame.top || at.bottom > frame.bottom) box.scrollTop += at.top - frame.top - frame.height / 2;
  if (at.left < frame.left || at.right > frame.right) box.scrollLeft += at.right - frame.right + 16;
}

// ---- tokens

// Text of each token in its place; a character in several tokens belongs to its last one.
function spell(trace, tokens) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return tokens.map((token) => {
    const piece = trace.pieces[token];
    if (token in trace.names) return decoder.decode() + trace.names[token];
    if (piece === undefined) return `<${token}> `;
    const bytes = typeof piece === "string" ? encoder.encode(piece) : Uint8Array.from(piece);
    return decoder.decode(bytes, { stream: true });
  });
}

// A token by itself, with its blanks made visible.
function label(trace, token) {
  const piece = trace.pieces[token];
  if (Array.isArray(piece)) return piece.map((byte) => `⟨${byte.toString(16)}⟩`).join("");
  return visible(piece || trace.names[token] || `<${token}>`);
}

function visible(text) {
  return text
    .replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f]/g, "�");
}

const percent = (logprob) => logprob === null ? "unknown" : `${(100 * Math.exp(logprob)).toFixed(1)} %`;

// Neighbouring steps get colours far apart; steps of a canvas run from cold to warm.
const farHue = (step) => (step * 137.5) % 360;
const warmHue = (step, steps) => (220 + 170 * step / Math.max(steps - 1, 1)) % 360;

function paint(node, hue, logprob) {
  node.style.setProperty("--hue", hue);
  node.style.setProperty("--doubt", logprob === null ? 1 : 1 - Math.exp(logprob));
}

// ---- charts

// A picture of all steps, a column each, with a mark at one of them; a click goes to a step.
function strip(picture, steps) {
  const head = make("div", { class: "playhead" });
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    player.go(Math.floor(steps * (event.clientX - box.left) / box.width));
  });
  const show = (step) => { head.style.left = `${100 * (step + 0.5) / steps}%`; };
  return { show, box: make("div", { class: "strip" }, picture, head) };
}

function titled(title, ...parts) {
  return make("figure", {}, make("figcaption", {}, title), ...parts);
}

const key = (...parts) => make("p", { class: "key" }, ...parts);

function stepChart(values, title) {
  const [width, height, top] = [values.length, 40, Math.max(...values, 1)];
  const path = values.map((value, i) => `M${i + 0.1} ${height}v${-height * value / top}h.8V${height}z`);
  const picture = draw("svg", { viewBox: `0 -2 ${width} ${height + 2}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
    draw("path", { class: "bars", d: path.join("") }));
  const { show, box } = strip(picture, width);
  const mean = sum(values) / width;
  return { show, figure: titled(title, box, key(`${mean.toFixed(2)} on average, at most ${Math.max(...values)}`)) };
}

function shareTable(title, shares) {
  const rows = shares.map(({ name, part, whole }) => make("tr", {},
    make("th", { scope: "row" }, name),
    make("td", { class: "bar" }, make("meter", { min: 0, max: whole, value: part, "aria-label": `${part} of ${whole}` })),
    make("td", {}, `${Math.round(100 * part / whole)} %`),
    make("td", { class: "soft" }, `${part} of ${whole}`)));
  return titled(title, make("table", {}, make("tbody", {}, ...rows)));
}
