"use strict";
// One row of a trace: its text, and what happened in the step that the player is at.

class View {
  constructor(trace, row, same) {
    Object.assign(this, { trace, row, steps: row.steps });
    this.same = same;
    this.differs = same === undefined ? () => false : outside(same);
    this.root = make("section", { class: "trace", "aria-label": `${trace.method} on ${trace.model}` }, ...this.head());
  }

  head() {
    const { trace, row, steps } = this;
    const facts = [
      ["promise", trace.level], ["tokens", row.tokens.length], ["steps", steps.length],
      ["tokens per step", (row.tokens.length / steps.length).toFixed(2)],
      ["end", row.finish], ["seed", row.seed], ["sample", row.sample],
    ];
    const options = Object.entries(trace.options).map(([name, value]) => [name, JSON.stringify(value)]);
    return [
      make("h2", {}, make("b", {}, trace.method), ` on ${trace.model}`),
      list(facts),
      make("details", {}, make("summary", {}, "Options"), list(options)),
      make("details", {}, make("summary", {}, `Prompt, ${count(row.prompt.length, "token")}`),
        make("p", { class: "text" }, spell(trace, row.prompt).join(""))),
      ...(this.same === undefined ? [] : [make("p", { class: "key" },
        `${sum(this.same.map(([, size]) => size))} of ${count(row.tokens.length, "token")} are in both texts; the others are `,
        make("span", { class: "token differs" }, "marked"), ".")]),
    ];
  }

  // A piece of text that goes to its step when it is clicked.
  token(text, place, step, title) {
    const node = make("span", { class: "token", title }, text);
    node.classList.toggle("differs", this.differs(place));
    node.addEventListener("click", () => player.go(step));
    return node;
  }

  add(...parts) {
    this.root.append(...parts);
  }
}

function list(pairs) {
  return make("dl", {}, ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, `${value}`))));
}

function outside(stretches) {
  return (place) => !stretches.some(([start, size]) => place >= start && place < start + size);
}

// ---- trees

class TreeView extends View {
  constructor(...parts) {
    super(...parts);
    this.drafted = this.steps.map((step) => Math.min(step.path.length - 1, step.logprobs.length));
    this.tree = make("div", { class: "tree", tabindex: 0, role: "region", "aria-label": "Draft tree" });
    this.why = make("p", { class: "why" });
    this.chart = stepChart(this.steps.map((step) => step.logprobs.length), "Tokens per step");
    const chip = (kind, text) => make("span", { class: `chip ${kind}` }, text);
    this.add(this.text(), make("h3", {}, "Draft tree of this step"), this.why, this.tree,
      key(chip("yes", "✓"), " accepted  ", chip("no", "✗"), " refused, with what stands below it  ",
        chip("chosen", "→"), " what the target chose there"),
      make("div", { class: "charts" }, this.chart.figure, this.acceptance()));
  }

  text() {
    const tokens = this.steps.flatMap((step, number) => step.logprobs.map((logprob, i) =>
      ({ token: step.chosen[i], number, logprob, drafted: i < this.drafted[number] })));
    const texts = spell(this.trace, tokens.map(({ token }) => token));
    this.tokens = tokens.map(({ number, logprob, drafted }, place) => {
      const how = drafted ? "accepted draft" : "the target's own";
      const node = this.token(texts[place], place, number, `step ${number + 1}, ${how}, probability ${percent(logprob)}`);
      paint(node, farHue(number), logprob);
      node.classList.add(drafted ? "draft" : "own");
      return { node, number };
    });
    this.page = make("p", { class: "text", role: "group", "aria-label": "Text" }, ...this.tokens.map(({ node }) => node));
    return this.page;
  }

  show(number) {
    for (const { node, number: own } of this.tokens) {
      node.classList.toggle("now", own === number);
      node.classList.toggle("later", own > number);
    }
    reveal(this.page, this.tokens.findLast(({ number: own }) => own === number)?.node);
    this.chart.show(number);
    const step = this.steps[number];
    this.tree.replaceChildren(make("ul", {}, this.node(step, children(step), 0)));
    reveal(this.tree, [...this.tree.querySelectorAll(".chip.yes, .chip.chosen")].at(-1));
    this.why.textContent = this.said(number);
  }

  said(number) {
    const step = this.steps[number];
    const drafts = step.tokens.length - 1;
    const own = step.logprobs.length > this.drafted[number];
    const text = drafts ? `${this.drafted[number]} of ${count(drafts, "draft")} accepted` : "no drafts";
    const last = `“${label(this.trace, step.chosen.at(-1))}”`;
    const refused = children(step)[step.path.at(-1)].length;
    const why = refused ? `In place of ${count(refused, "draft")} the target chose ${last}` : `Then the target's own ${last}`;
    return `Step ${number + 1}: ${text}. ${own ? why : "The text ended"}.`;
  }

  node(step, below, id) {
    const { kind, why } = fate(this.trace, step, id);
    const marks = { root: "", yes: "✓ ", no: "✗ ", unread: "" };
    const chip = make("span", { class: `chip ${kind}`, title: why }, marks[kind] + label(this.trace, step.tokens[id]),
      make("span", { class: "unseen" }, ` ${why}`));
    const items = below[id].map((child) => this.node(step, below, child));
    if (id === step.path.at(-1) && step.logprobs.length === step.chosen.length) {
      const own = make("span", { class: "chip chosen", title: "what the target chose" }, `→ ${label(this.trace, step.chosen.at(-1))}`);
      items.push(make("li", {}, own));
    }
    return make("li", {}, chip, ...(items.length ? [make("ul", {}, ...items)] : []));
  }

  // How often a draft at each depth was there, and how often one was accepted.
  acceptance() {
    const shares = [];
    this.steps.forEach((step, number) => {
      const depth = [];
      step.parent.forEach((parent, id) => { depth[id] = parent < 0 ? 0 : depth[parent] + 1; });
      for (let d = 1; d <= Math.max(...depth); d++) {
        shares[d - 1] ??= { name: `${d}`, part: 0, whole: 0 };
        shares[d - 1].whole += 1;
        shares[d - 1].part += this.drafted[number] >= d;
      }
    });
    return shares.length ? shareTable("Accepted, by depth of the draft", shares) : "";
  }
}

function children(step) {
  const below = step.tokens.map(() => []);
  step.parent.forEach((parent, id) => { if (parent >= 0) below[parent].push(id); });
  return below;
}

// What became of a node, and why.
function fate(trace, step, id) {
  if (id === 0) return { kind: "root", why: "the last token of the text so far" };
  const depth = step.path.indexOf(step.parent[id]);
  if (step.path.includes(id)) {
    const past = step.path.indexOf(id) > step.logprobs.length;
    return past ? { kind: "unread", why: "accepted, but after the end of the text" } : { kind: "yes", why: "accepted" };
  }
  if (depth < 0) return { kind: "unread", why: "not reached: a token before it was refused" };
  const chosen = step.chosen[depth];
  if (chosen !== step.tokens[id]) return { kind: "no", why: `refused: the target chose “${label(trace, chosen)}”` };
  const same = depth < step.path.length - 1;
  return same ? { kind: "yes", why: "the same as an accepted one" } : { kind: "no", why: "not accepted by the rule" };
}

// ---- canvases

class WindowView extends View {
  constructor(...parts) {
    super(...parts);
    this.size = Math.max(this.row.tokens.length, ...this.steps.flatMap((step) => step.guesses.map(([slot, tokens]) => slot + tokens.length)));
    this.chart = stepChart(this.steps.map((step) => step.filled.length), "Slots decided per step");
    this.why = make("p", { class: "why" });
    const sign = (kind, text) => make("span", { class: `token ${kind}` }, text);
    this.add(make("h3", {}, "Canvas after this step"), this.why, this.canvas(),
      key(sign("now guess", "new"), " decided in this step  ", sign("guess", "guess"), " undecided; the line below says how sure  ",
        sign("guess", "□"), " not asked about  ", sign("again guess", "□"), " reopened"),
      this.film(),
      make("div", { class: "charts" }, this.chart.figure));
  }

  canvas() {
    const final = this.at(this.steps.length - 1);
    this.cells = Array.from({ length: this.size }, (_, slot) => {
      const node = this.token("", slot, final[slot]?.step ?? 0, "");
      // As wide as its token will be, so that the text moves little while it is filled.
      if (final[slot]) node.style.minWidth = `${[...visible(label(this.trace, final[slot].token))].length}ch`;
      return node;
    });
    this.page = make("p", { class: "text cells", role: "group", "aria-label": "Canvas" }, ...this.cells);
    return this.page;
  }

  // What each slot holds after a step.
  at(number) {
    const slots = Array(this.size);
    for (let i = 0; i <= number; i++) this.apply(slots, i);
    return slots;
  }

  apply(slots, number) {
    const step = this.steps[number];
    for (const slot of step.reopened) delete slots[slot];
    step.filled.forEach((slot, i) => { slots[slot] = { token: step.tokens[i], logprob: step.logprobs[i], step: number }; });
  }

  show(number) {
    const [step, slots] = [this.steps[number], this.at(number)];
    const reopened = new Set(step.reopened);
    const guesses = Array(this.size);
    for (const [first, tokens, sure] of step.guesses) {
      tokens.forEach((token, i) => { guesses[first + i] = { token, sure: +sure[i] }; });
    }
    this.cells.forEach((cell, slot) => {
      const [held, guess] = [slots[slot], guesses[slot]];
      cell.textContent = held ? label(this.trace, held.token) : guess ? label(this.trace, guess.token) : "□";
      cell.classList.toggle("now", held?.step === number);
      cell.classList.toggle("guess", !held);
      cell.classList.toggle("again", reopened.has(slot));
      if (held) paint(cell, warmHue(held.step, this.steps.length), held.logprob);
      else cell.style.setProperty("--sure", (guess?.sure ?? 0) / 10);
      cell.title = held ? `slot ${slot + 1}, decided in step ${held.step + 1}, probability ${percent(held.logprob)}`
        : guess ? `slot ${slot + 1}, a guess, ${guess.sure * 10} % or more` : `slot ${slot + 1}, not asked about`;
    });
    reveal(this.page, this.cells[step.filled[0]]);
    this.chart.show(number);
    this.reel.show(number);
    this.why.textContent = this.said(number);
  }

  said(number) {
    const step = this.steps[number];
    const asked = sum(step.guesses.map(([, tokens]) => tokens.length));
    const again = step.reopened.length ? `, ${step.reopened.length} reopened` : "";
    return `Step ${number + 1}: ${step.filled.length} of ${count(asked, "slot")} decided${again}; ${count(step.final, "token")} final.`;
  }

  // Every column is the canvas after one step.
  film() {
    this.strip = make("canvas", { width: this.steps.length, height: this.size, role: "img",
      "aria-label": "Film: one column per step, one line per slot" });
    this.reel = strip(this.strip, this.steps.length);
    this.develop();
    return titled("Film: from left to right the steps, from top to bottom the slots", this.reel.box,
      key("Colours go from the first step to the last, as above. A slot stands out in the step that decides it, and is red in one that reopens it."));
  }

  develop() {
    const [pen, slots] = [this.strip.getContext("2d"), Array(this.size)];
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    pen.clearRect(0, 0, this.strip.width, this.strip.height);
    this.steps.forEach((step, number) => {
      this.apply(slots, number);
      slots.forEach((held, slot) => {
        const hue = warmHue(held.step, this.steps.length);
        pen.fillStyle = held.step === number ? (dark ? "#fff" : "#000") : `hsl(${hue} 60% ${dark ? 42 : 68}%)`;
        pen.fillRect(number, slot, 1, 1);
      });
      pen.fillStyle = dark ? "#ff7b72" : "#cf222e";
      for (const slot of step.reopened) pen.fillRect(number, slot, 1, 1);
    });
  }
}
