"use strict";
// The page's one script: filters and word differences of samples, values of charts. It changes text
// by textContent and new elements only, asks for nothing, and the page is complete without it.
(() => {
  const STEP = 50;
  const MAX_WORDS = 1500;
  const ALL = "all";

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const textOf = (parent, selector) => parent.querySelector(selector)?.textContent.trim() ?? "";
  const textsOf = (parent, selector) =>
    [...parent.querySelectorAll(selector)].map((one) => one.textContent.trim());

  // Word differences by the longest common subsequence.
  const wordsOf = (text) => text.match(/\s*\S+|\s+$/g) ?? [];
  function differences(before, after) {
    const old = wordsOf(before), now = wordsOf(after);
    if (Math.max(old.length, now.length) > MAX_WORDS) return [["same", after]];
    const bare = (words) => words.map((word) => word.trim());
    const a = bare(old), b = bare(now), width = b.length + 1;
    const common = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        common[i * width + j] = a[i] === b[j]
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    const parts = [];
    const add = (kind, word) => {
      const text = parts.length && !/^\s/.test(word) ? ` ${word}` : word;
      const last = parts.at(-1);
      if (last && last[0] === kind) last[1] += text;
      else parts.push([kind, text]);
    };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { add("same", now[j]); i++; j++; }
      else if (i < a.length &&
        (j === b.length || common[(i + 1) * width + j] >= common[i * width + j + 1])) {
        add("del", old[i]); i++;
      } else { add("ins", now[j]); j++; }
    }
    return parts;
  }

  function setUpSamples() {
    const form = document.getElementById("browser");
    const list = document.getElementById("samples");
    if (!form || !list) return;
    const more = document.getElementById("more");
    const count = document.getElementById("browser-count");
    const control = (name) => document.getElementById(`by-${name}`);
    const samples = [...list.children].map((article, place) => ({
      article, place,
      source: textOf(article, ".source"),
      kind: textOf(article, ".kind"),
      principles: textsOf(article, ".principle"),
      answers: [...article.querySelectorAll(".answer")].map((one) => ({
        policy: textOf(one, ".by"), found: textOf(one, ".class"),
        body: one.querySelector(".text"), plain: null,
      })),
      change: article.dataset.change === "" ? null : Number(article.dataset.change),
      words: null,
    }));
    const distinct = (values) => [...new Set(values)].filter(Boolean);
    const fill = (name, values, first) => {
      const select = control(name);
      for (const [value, shown] of [...(first ? [[ALL, first]] : []), ...values]) {
        const option = element("option", shown);
        option.value = value;
        select.append(option);
      }
      if (select.options.length < 2 || (first && values.length < 2))
        select.parentElement.hidden = true;
    };
    // Values are numbered, so that no text of a sample can be taken for "all".
    const choices = {
      source: distinct(samples.map((one) => one.source)),
      kind: distinct(samples.map((one) => one.kind)),
      policy: distinct(samples.flatMap((one) =>
        one.answers.filter((answer) => answer.found).map((answer) => answer.policy))),
      class: distinct(samples.flatMap((one) => one.answers.map((answer) => answer.found))).sort(),
      principle: distinct(samples.flatMap((one) => one.principles)).sort(),
    };
    for (const [name, values] of Object.entries(choices))
      fill(name, values.map((value, number) => [number, value]), name === "policy" ? "any" : ALL);
    const orders = [["page", "as stored"]];
    if (samples.some((one) => one.change !== null))
      orders.push(["most", "largest reward change"], ["gain", "largest gain"],
        ["loss", "largest loss"]);
    fill("order", orders);

    const chosen = (name) =>
      control(name).value === ALL || control(name).value === ""
        ? null : choices[name][Number(control(name).value)];
    const KEYS = {
      page: () => 0,
      most: (one) => -Math.abs(one.change), gain: (one) => -one.change, loss: (one) => one.change,
    };
    let limit = STEP, matching = samples;

    function matches(one, wanted) {
      return (wanted.source === null || one.source === wanted.source) &&
        (wanted.kind === null || one.kind === wanted.kind) &&
        (wanted.principle === null || one.principles.includes(wanted.principle)) &&
        (wanted.class === null || one.answers.some((answer) => answer.found === wanted.class &&
          (wanted.policy === null || answer.policy === wanted.policy))) &&
        (wanted.class !== null || wanted.policy === null ||
          one.answers.some((answer) => answer.policy === wanted.policy)) &&
        (wanted.words === "" || wordsIn(one).includes(wanted.words));
    }
    const wordsIn = (one) => (one.words ??= one.article.textContent.toLowerCase());

    function mark(one, on) {
      one.answers.forEach((answer, place) => {
        answer.plain ??= answer.body.textContent;
        if (!on || place === 0) {
          if (place > 0) answer.body.textContent = answer.plain;
          return;
        }
        const before = one.answers[place - 1];
        before.plain ??= before.body.textContent;
        answer.body.replaceChildren(...differences(before.plain, answer.plain).map(
          ([kind, text]) => kind === "same" ? document.createTextNode(text) : element(kind, text)));
      });
    }
    let marked = new Set();
    function show() {
      const visible = new Set(matching.slice(0, limit));
      for (const one of samples) one.article.hidden = !visible.has(one);
      const on = control("diff").checked;
      for (const one of marked) if (!on || !visible.has(one)) { mark(one, false); marked.delete(one); }
      if (on) for (const one of visible) if (!marked.has(one)) { mark(one, true); marked.add(one); }
      const number = (value) => value.toLocaleString("en");
      count.textContent = `${number(matching.length)} of ${number(samples.length)} samples` +
        (matching.length > limit ? `, the first ${number(limit)} shown` : "");
      more.hidden = matching.length <= limit;
    }
    let order = "page";
    function filter() {
      const wanted = { words: control("words").value.trim().toLowerCase() };
      for (const name of Object.keys(choices)) wanted[name] = chosen(name);
      matching = samples.filter((one) => matches(one, wanted));
      const wantedOrder = control("order").value;
      const key = (one) => one.change === null && wantedOrder !== "page" ? Infinity
        : KEYS[wantedOrder](one);
      const sorted = (rows) =>
        [...rows].sort((one, other) => {
          const first = key(one), second = key(other);
          return first === second ? one.place - other.place : first - second;
        });
      matching = sorted(matching);
      if (wantedOrder !== order) {
        list.append(...sorted(samples).map((one) => one.article));
        order = wantedOrder;
      }
      limit = STEP;
      show();
    }
    let waiting;
    form.addEventListener("input", (event) => {
      clearTimeout(waiting);
      if (event.target.id === "by-words") waiting = setTimeout(filter, 150);
      else if (event.target.id === "by-diff") show();
      else filter();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => {
      const next = matching[limit];
      limit += STEP;
      show();
      const heading = next.article.querySelector("h3");
      heading.tabIndex = -1;
      heading.focus();
    });
    // A link to a sample shows it, whatever was filtered out.
    function follow() {
      const place = samples.findIndex((one) => `#${one.article.id}` === location.hash);
      if (place < 0 || !samples[place].article.hidden) return;
      form.reset();
      filter();
      limit = Math.ceil((matching.indexOf(samples[place]) + 1) / STEP) * STEP;
      show();
      samples[place].article.scrollIntoView();
    }
    form.hidden = false;
    form.reset();
    filter();
    follow();
    addEventListener("hashchange", follow);
  }

  // Values of a chart's points by pointer, and by arrow keys once the chart has the focus.
  function setUpChart(figure) {
    const svg = figure.querySelector("svg");
    const marks = svg ? [...svg.querySelectorAll(".mark")] : [];
    if (!marks.length) return;
    const values = marks.map((mark) => mark.querySelector("title").textContent);
    for (const mark of marks) mark.querySelector("title").remove();
    const readout = element("p", "\u00a0", "readout");
    readout.setAttribute("aria-live", "polite");
    svg.after(readout);
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("aria-roledescription", "chart, arrow keys read its values");
    let current = -1;
    const choose = (place) => {
      if (place === current) return;
      marks[current]?.classList.remove("on");
      current = place;
      marks[place]?.classList.add("on");
      readout.textContent = values[place] ?? "\u00a0";
    };
    svg.addEventListener("keydown", (event) => {
      const last = marks.length - 1;
      const next = { ArrowRight: Math.min(last, current + 1), ArrowLeft: Math.max(0, current - 1),
        Home: 0, End: last, Escape: -1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      choose(next);
    });
    const nearest = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY)
        .matrixTransform(svg.getScreenCTM().inverse());
      let best = -1, least = Infinity;
      marks.forEach((mark, place) => {
        const away = Math.hypot(mark.cx.baseVal.value - point.x,
          0.4 * (mark.cy.baseVal.value - point.y));
        if (away < least) { least = away; best = place; }
      });
      choose(best);
    };
    svg.addEventListener("pointermove", nearest);
    svg.addEventListener("pointerdown", nearest);
    svg.addEventListener("pointerleave", () => choose(-1));
    svg.addEventListener("focusout", () => choose(-1));
  }

  setUpSamples();
  document.querySelectorAll("figure").forEach(setUpChart);
})();
