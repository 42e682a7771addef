"use strict";
// Reads the traces out of the page, and goes through their steps.

const player = {
  views: [], step: 0, last: 0, timer: null,

  open(number) {
    this.stop();
    const pairs = data.traces.map((trace, side) => {
      const same = data.same[number]?.map((stretch) => [stretch[side], stretch[2]]);
      return new (trace.kind === "tree" ? TreeView : WindowView)(trace, trace.rows[number], same);
    });
    this.views = pairs;
    this.last = Math.max(...pairs.map((view) => view.steps.length)) - 1;
    byId("scrub").max = this.last;
    byId("traces").replaceChildren(...pairs.map((view) => view.root));
    this.go(this.last);
  },

  go(step) {
    this.step = clamp(step, 0, this.last);
    for (const view of this.views) view.show(Math.min(this.step, view.steps.length - 1));
    byId("scrub").value = this.step;
    byId("scrub").setAttribute("aria-valuetext", `step ${this.step + 1} of ${this.last + 1}`);
    byId("where").textContent = `${this.step + 1} / ${this.last + 1}`;
    if (!this.timer) byId("said").textContent = this.views.map((view) => view.why.textContent).join(" ");
  },

  play() {
    if (this.step === this.last) this.go(0);
    this.timer = setInterval(() => this.tick(), 1000 / byId("speed").value);
    this.named("Pause", "⏸");
  },

  tick() {
    this.go(this.step + 1);
    if (this.step === this.last) this.stop();
  },

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.named("Play", "▶");
  },

  named(name, sign) {
    byId("play").setAttribute("aria-label", name);
    byId("play").textContent = sign;
  },

  toggle() {
    if (this.timer) this.stop(); else this.play();
  },
};

const KEYS = {
  ArrowLeft: () => player.go(player.step - 1), ArrowRight: () => player.go(player.step + 1),
  Home: () => player.go(0), End: () => player.go(player.last), " ": () => player.toggle(),
};

function onKey(event) {
  const own = event.target.closest("select, summary, button");
  const handled = KEYS[event.key];
  if (!handled || event.ctrlKey || event.metaKey || event.altKey) return;
  if (own && (event.key === " " || own.tagName === "SELECT")) return;
  event.preventDefault();
  handled();
}

function start() {
  const rows = Math.min(...data.traces.map((trace) => trace.rows.length));
  byId("row").append(...Array.from({ length: rows }, (_, i) => make("option", { value: i }, `${i + 1} of ${rows}`)));
  byId("rows").hidden = rows < 2;
  document.body.classList.toggle("pair", data.traces.length > 1);
  if (data.traces.every((trace) => trace.kind === "window")) byId("colour").querySelector("[value=origin]").remove();
  byId("colour").addEventListener("change", () => { document.body.dataset.colour = byId("colour").value; });
  byId("row").addEventListener("change", () => player.open(+byId("row").value));
  byId("scrub").addEventListener("input", () => player.go(+byId("scrub").value));
  byId("play").addEventListener("click", () => player.toggle());
  byId("back").addEventListener("click", () => player.go(player.step - 1));
  byId("next").addEventListener("click", () => player.go(player.step + 1));
  byId("speed").addEventListener("change", () => { if (player.timer) { player.stop(); player.play(); } });
  document.addEventListener("keydown", onKey);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => player.views.forEach((view) => view.develop?.()));
  document.body.dataset.colour = "step";
  player.open(0);
}

start();
