// Values under the pointer, or under a cursor that arrow keys move. Where points are is read from the curves themselves.
"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const points = new WeakMap();

  // The points of a curve as pairs of x and y, in the units of its drawing.
  function pointsOf(path) {
    if (!points.has(path)) {
      const numbers = path.getAttribute("d").replace(/h[\d.]+/g, " ").match(/-?[\d.]+/g).map(Number);
      points.set(path, Array.from({ length: numbers.length / 2 }, (_, i) => [numbers[2 * i], numbers[2 * i + 1]]));
    }
    return points.get(path);
  }

  // Which point of a curve is nearest to x: they are in the order of x.
  function nearest(pairs, x) {
    let low = 0, high = pairs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (pairs[middle][0] < x) low = middle; else high = middle;
    }
    return x - pairs[low][0] < pairs[high][0] - x ? low : high;
  }

  // What is at x, along which the chart of this class is.
  function place(svg, x) {
    const { low, high, left, right } = svg.dataset, width = svg.viewBox.baseVal.width;
    const share = (x - left) / (width - left - right), value = Number(low) + share * (high - low);
    if (svg.classList.contains("by-tokens"))
      return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(value) + " tokens";
    if (!svg.classList.contains("by-seconds")) return "";
    const whole = Math.round(value), two = (n) => String(n).padStart(2, "0");
    return Math.floor(whole / 3600) + ":" + two(Math.floor(whole / 60) % 60) + ":" + two(whole % 60);
  }

  function element(parent, name, attributes) {
    const made = document.createElementNS(NS, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    return parent.appendChild(made);
  }

  function make(name, parent, text) {
    const made = parent.appendChild(document.createElement(name));
    if (text !== undefined) made.textContent = text;
    return made;
  }

  for (const figure of document.querySelectorAll("figure")) {
    const script = figure.querySelector("script");
    let lines = null;
    const tip = make("div", figure);
    tip.className = "tip";
    tip.setAttribute("role", "status");
    tip.hidden = true;
    let over = null;

    function clear() {
      tip.hidden = true;
      if (over) over.remove();
      over = null;
    }

    function show(svg, wanted) {
      clear();
      lines = lines || JSON.parse(script.textContent);
      const found = [...svg.querySelectorAll("path.told")]
        .map((path, i) => ({ line: lines[i], pairs: pointsOf(path) }))
        .filter(({ line }) => !line.quiet)
        .map((one) => ({ ...one, at: nearest(one.pairs, wanted) }));
      const gap = (one) => Math.abs(one.pairs[one.at][0] - wanted);
      const first = found.reduce((a, b) => (gap(b) < gap(a) ? b : a));
      const x = first.pairs[first.at][0], step = first.line.steps[first.at];
      over = element(svg, "g", { "class": "over", "aria-hidden": "true" });
      const box = svg.viewBox.baseVal;
      element(over, "path", { "class": "cursor", d: `M${x} 10V${box.height - 38}` });
      tip.replaceChildren();
      const where = place(svg, x);
      make("b", tip, "step " + step.toLocaleString("en") + (where && ", " + where));
      for (const { line, pairs } of found) {
        const at = nearest(pairs, x);
        // A curve that ends before, or has no value near, says nothing of it.
        if (Math.abs(pairs[at][0] - x) > box.width / 40) continue;
        element(over, "circle", { cx: pairs[at][0], cy: pairs[at][1], r: 4, "class": line.class });
        const row = make("div", tip);
        make("i", row).style.background = `var(--${line.class})`;
        make("span", row, line.name);
        make("em", row, line.said[at] + (line.steps[at] === step ? "" : ", step " + line.steps[at].toLocaleString("en")));
      }
      for (const dot of over.querySelectorAll("circle")) dot.style.fill = `var(--${dot.getAttribute("class")})`;
      tip.hidden = false;
      const drawn = svg.getBoundingClientRect(), around = figure.getBoundingClientRect();
      const at = drawn.left - around.left + (x / box.width) * drawn.width, wide = tip.offsetWidth;
      tip.style.left = Math.max(8, Math.min(at + 14 + wide > around.width - 8 ? at - wide - 14 : at + 14, around.width - wide - 8)) + "px";
      tip.style.top = drawn.top - around.top + 14 + "px";
      figure.dataset.x = x;
    }

    for (const svg of figure.querySelectorAll("svg[tabindex]")) {
      const width = svg.viewBox.baseVal.width;
      const follow = (event) => {
        const drawn = svg.getBoundingClientRect();
        show(svg, ((event.clientX - drawn.left) / drawn.width) * width);
      };
      svg.addEventListener("pointermove", follow);
      svg.addEventListener("pointerdown", follow);
      svg.addEventListener("pointerleave", clear);
      svg.addEventListener("blur", clear);
      svg.addEventListener("keydown", (event) => {
        const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (event.key === "Escape") clear();
        if (!way) return;
        event.preventDefault();
        const pairs = pointsOf(svg.querySelector("path.told"));
        const now = over ? nearest(pairs, Number(figure.dataset.x)) + way : way > 0 ? 0 : pairs.length - 1;
        show(svg, pairs[Math.max(0, Math.min(pairs.length - 1, now))][0]);
      });
    }
    for (const choice of document.querySelectorAll(".controls input")) choice.addEventListener("change", clear);
  }
})();
