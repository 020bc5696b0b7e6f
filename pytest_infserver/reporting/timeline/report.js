"use strict";
// Everything in the data is foreign text: it becomes text nodes and attributes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const BAD = new Set(["failed", "error"]);
  const HOLLOW = new Set(["skipped", "xfailed", "rerun"]);
  const KNOWN = new Set(["passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun", "interrupted"]);
  const SIGNS = { passed: "✓", failed: "✕", error: "✕", skipped: "○", xfailed: "◇", xpassed: "◆", rerun: "↻", interrupted: "■" };
  const PITCH = 16, BAR = 11, TOP = 22, MEMORY = 34, BEATS = 20, GAP = 8, LINE = 25;

  // ---- small helpers

  function make(tag, properties, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (value === null || value === undefined) continue;
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  }

  function draw(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const name in attributes) if (attributes[name] !== null) node.setAttribute(name, attributes[name]);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function anchor(text, address) {
    if (!address) return make("span", {}, text);
    try {
      if (!["http:", "https:", "file:"].includes(new URL(address, document.baseURI).protocol)) return make("span", {}, text);
    } catch { return make("span", {}, text); }
    return make("a", { href: address, rel: "noopener noreferrer" }, text);
  }

  function duration(ms) {
    if (ms === null || ms === undefined) return "-";
    if (ms < 99.5) return `${Number(ms.toPrecision(3))} ms`;
    const seconds = ms / 1000;
    if (seconds < 59.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
    const whole = Math.round(seconds), two = (value) => String(value).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours}:${two(minutes)}:${two(whole % 60)} h` : `${minutes}:${two(whole % 60)} min`;
  }

  function moment(ms, step) {
    const sign = ms < 0 ? "-" : "", all = Math.abs(ms) / 1000;
    if (data.end < 60000 || step < 100) return `${sign}${all.toFixed(step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3)} s`;
    const whole = step >= 1000 ? Math.round(all) : all, two = (value) => String(Math.floor(value)).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60, rest = whole % 60;
    const tail = step >= 1000 ? "" : `.${Math.floor((rest % 1) * 10 + 1e-6)}`;
    return sign + (hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`) + tail;
  }

  const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(0)} MB`);
  const clock = (ms) => new Date((data.begin * 1000) + ms).toLocaleTimeString();
  const shape = (outcome) => `o-${KNOWN.has(outcome) ? outcome : "other"}${HOLLOW.has(outcome) ? " hollow" : ""}`;
  // Where the name begins that stands behind the file and the class.
  const nameAt = (id) => { const at = id.lastIndexOf("::", id.includes("[") ? id.indexOf("[") : id.length); return at < 0 ? 0 : at + 2; };
  const clip = (text, width) => {
    const most = Math.floor(width / 5.9);
    return text.length <= most ? text : most < 3 ? "" : `${text.slice(0, most - 1)}…`;
  };
  const sums = (steps) => { let at = 0; return steps.map((step) => (at += step)); };

  // ---- the data, unpacked

  let before = "";
  const tests = data.tests.map((row, index) => {
    before = before.slice(0, row[0]) + row[1];
    const texts = new Map(row[12] ?? []);
    return {
      index, id: before, low: before.toLowerCase(), outcome: typeof row[2] === "number" ? data.outcomes[row[2]] : row[2],
      start: row[3] ?? null, length: row[4] ?? null, phases: [5, 6, 7].map((column) => row[column] ?? null),
      worker: data.workers[row[8]] ?? "", row: row[9] ?? null,
      uses: (row[10] ?? []).map((use, place) => ({
        server: data.servers[use[0]], at: use[0], row: use[1] ?? null, shared: use[2] ?? null, launch: use[3] ?? null,
        logStart: use[4] ?? null, logLength: use[5] ?? null, prompt: use[6] ?? null, generated: use[7] ?? null,
        requests: use[8] ?? null, errors: use[9] ?? null, text: texts.get(place) ?? "",
      })),
      message: data.messages[row[11]] ?? "", artifacts: row[13] ?? [], wait: row[14] ?? 0,
      details: (row[15] ?? []).map(([title, text]) => [title, data.details[text]]),
    };
  });
  for (const test of tests) test.total = totalOf(test);
  const meaning = (word) => (Object.hasOwn(data.meanings, word) ? data.meanings[word] : null);
  const click = (test) => `click: ${test.details.length ? "traceback, captured output, " : ""}times, server log`;
  const count = (what) => tests.filter((test) => BAD.has(test.outcome) === what).length;

  function laneOf(server, at) {
    const mine = [];
    for (const test of tests) {
      if (test.start === null || test.length === null) continue;
      if (server === null) { if (test.row !== null) mine.push([test, test.row]); continue; }
      const use = test.uses.find((one) => one.at === at);
      if (use && use.row !== null) mine.push([test, use.row]);
    }
    const rows = [];
    for (const [test, row] of mine) (rows[row] ??= []).push(test);
    for (let row = 0; row < rows.length; row++) rows[row] ??= [];
    const lane = { server, rows, count: mine.length };
    if (server) {
      lane.memory = { at: sums(server.memory[0]), rss: server.memory[1], gpu: server.memory[2] };
      lane.beats = { at: sums(server.heartbeat[0]), latency: server.heartbeat[1] };
      lane.marked = server.lives.some((life, index) => index > 0 || life.end === "died" || life.end === "failed");
    }
    let y = 4;
    lane.marksAt = y; if (lane.marked) y += 15;
    lane.lifeAt = y; if (server) y += TOP;
    lane.rowsAt = y; y += rows.length * PITCH + (rows.length ? 4 : 0);
    // The words beside the plots need their room, too.
    if (server) y = Math.max(y, 56);
    lane.memoryAt = y; if (server && lane.memory.at.length) y += MEMORY + GAP;
    lane.beatsAt = y; if (server && lane.beats.at.length) y += BEATS + GAP;
    lane.height = Math.max(y + 2, server ? 52 : 40);
    return lane;
  }
  const lanes = data.servers.map(laneOf);
  const alone = laneOf(null, null);
  if (alone.count) lanes.push(alone);

  // ---- the timeline

  const full = [0, data.end * 1.01];
  let [from, to] = full;
  let width = 0;
  const descriptions = new WeakMap();
  const x = (ms) => ((ms - from) / (to - from)) * width;

  const chart = make("div", {
    class: "chart", tabindex: "0", role: "group",
    "aria-label": "Timeline of servers and tests. Plus and minus zoom, arrows move, 0 shows all. The list of tests below has the same tests.",
  });
  const axis = draw("svg", { class: "plot", height: 24, "aria-hidden": "true" });
  const zoomed = make("span", { role: "status" });
  const cursor = make("div", { class: "cursor", hidden: "" });
  const choice = make("div", { class: "choice", hidden: "" });
  const tip = make("div", { class: "tip", role: "tooltip", hidden: "" });
  const tool = (text, label, action) => make("button", { type: "button", "aria-label": label, title: label, onclick: action }, text);
  const reset = tool("all", "Show all (0)", () => show(...full));

  function build() {
    const section = document.getElementById("timeline");
    const used = [...new Set(tests.map((test) => test.outcome))];
    const legend = make("div", { class: "legend" });
    for (const outcome of Object.keys(SIGNS).filter((one) => used.includes(one))) legend.append(make("span", {}, swatch(outcome), outcome));
    section.append(make("div", { class: "bar" }, make("h2", {}, "Timeline"), legend, make("span", { class: "grow" }),
      make("div", { class: "tools" }, zoomed, tool("−", "Zoom out (−)", () => zoom(1.6)), tool("+", "Zoom in (+)", () => zoom(1 / 1.6)), reset)));
    chart.append(make("div", { class: "lane axis" }, make("div", { class: "who faint" }, "drag to zoom, double-click for all"), axis));
    for (const lane of lanes) {
      lane.svg = draw("svg", { class: "plot", height: lane.height, role: "img", "aria-label": spoken(lane) });
      chart.append(make("div", { class: "lane" }, head(lane), lane.svg));
    }
    chart.append(cursor, choice);
    section.append(chart);
    document.body.append(tip);
    section.hidden = false;
    listen();
    new ResizeObserver(() => {
      const now = axis.getBoundingClientRect().width;
      if (Math.abs(now - width) > 0.5) { width = now; paint(); }
    }).observe(chart);
    width = axis.getBoundingClientRect().width;
    paint();
  }

  function swatch(outcome) {
    const svg = draw("svg", { width: 12, height: 12, "aria-hidden": "true" });
    bar(svg, outcome, 1, 1, 10, 9);
    return svg;
  }

  function spoken(lane) {
    const many = counted(lane.count);
    return lane.server ? `${lane.server.name}: ${lane.server.lives.length} launches, ${many}` : `Tests without a server: ${many}`;
  }

  function counted(tests) {
    return tests === 1 ? "1 test" : `${tests} tests`;
  }

  function head(lane) {
    const server = lane.server, who = make("div", { class: "who" });
    if (!server) { who.append(make("b", {}, "no server"), make("span", {}, counted(lane.count))); return who; }
    const about = [server.backend, server.model].filter(Boolean).join(" · ");
    const ready = server.attached ? "attached" : server.ready === null ? "" : `ready after ${duration(server.ready * 1000)}`;
    who.append(make("b", { title: server.name }, server.name), make("span", { title: about }, about));
    if (lane.rows.length || !lane.memory.at.length) who.append(make("span", {}, [ready, counted(lane.count)].filter(Boolean).join(" · ")));
    const label = (y, key, text) => { const line = make("span", { class: "at" }, make("i", { class: key }), text); line.style.top = `${y}px`; who.append(line); };
    const peak = (bytes) => (bytes === null ? "" : `, peak ${size(bytes)}`);
    if (lane.memory.at.length) {
      const y = lane.memoryAt;
      if (lane.memory.rss.length) label(y, "key-rss", `memory${peak(server.peaks[0])}`);
      if (lane.memory.gpu.length) label(y + 15, "key-gpu", `GPU${peak(server.peaks[1])}`);
    }
    if (lane.beats.at.length) label(lane.beatsAt + 3, "key-beat", `heartbeat${server.p99 === null ? "" : ` p99 ${duration(server.p99 * 1000)}`}`);
    return who;
  }

  function show(start, end) {
    const least = Math.min(5, full[1]), length = Math.min(Math.max(end - start, least), full[1]);
    from = Math.min(Math.max(start, 0), full[1] - length);
    to = from + length;
    paint();
  }

  function zoom(factor, at = (from + to) / 2) { show(at - (at - from) * factor, at + (to - at) * factor); }

  function ticks() {
    const wanted = ((to - from) * 90) / Math.max(width, 1);
    const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 216e5, 432e5, 864e5];
    const step = steps.find((one) => one >= wanted) ?? Math.ceil(wanted / 864e5) * 864e5;
    const found = [];
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(at);
    return [found, step];
  }

  function paint() {
    if (width <= 0) return;
    const [found, step] = ticks();
    const whole = from <= 0 && to >= full[1];
    reset.disabled = whole;
    zoomed.textContent = whole ? "" : `${moment(from, step)} to ${moment(to, step)} `;
    axis.replaceChildren(...found.flatMap((at) => [
      draw("line", { class: "grid", x1: x(at), x2: x(at), y1: 18, y2: 24 }),
      draw("text", { class: "tick", x: Math.max(x(at), 12), y: 14 }, moment(at, step)),
    ]));
    for (const lane of lanes) {
      const parts = document.createDocumentFragment();
      for (const at of found) parts.append(draw("line", { class: "grid", x1: x(at), x2: x(at), y1: 0, y2: lane.height }));
      if (lane.server) paintLives(parts, lane);
      lane.rows.forEach((row, index) => paintRow(parts, row, lane.rowsAt + index * PITCH));
      if (lane.server) { paintMemory(parts, lane); paintBeats(parts, lane); }
      lane.svg.replaceChildren(parts);
    }
  }

  function described(node, what) { descriptions.set(node, what); node.classList.add("hit"); return node; }

  function paintLives(parts, lane) {
    lane.server.lives.forEach((life, index) => {
      const end = life.ended ?? data.end;
      const ready = life.ready ?? null, stopping = life.stopping ?? null;
      const first = life.launched ?? ready ?? 0;
      if (end < from || first > to) return;
      if (life.launched !== undefined) {
        const booted = ready ?? stopping ?? end;
        const phases = [[first, "launching"], ...life.phases.filter(([at]) => at >= first && at <= booted)];
        phases.forEach(([at, name], number) => {
          const until = number + 1 < phases.length ? phases[number + 1][0] : booted;
          if (until > at) piece(parts, lane, at, until, `boot ${number % 2 ? "b" : "a"}`, 14, name, { life, index, phase: name, length: until - at });
        });
      }
      const up = ready ?? (life.launched === undefined ? first : null);
      if (up !== null) piece(parts, lane, up, stopping ?? end, "up", 5, "", { life, index, phase: lane.server.attached ? "attached" : "ready", length: (stopping ?? end) - up });
      for (const [begin, woken] of life.asleep ?? []) {
        const until = Math.min(woken ?? end, stopping ?? end);
        if (until > begin) piece(parts, lane, begin, until, "asleep", 14, "asleep", { life, index, phase: "asleep", length: until - begin });
      }
      if (stopping !== null) piece(parts, lane, stopping, end, "stopping", 14, "stop", { life, index, phase: "stopping", length: end - stopping });
      const bad = life.end === "died" || life.end === "failed";
      const what = { server: lane.server, life, index };
      const again = `↻ launch ${life.launch ?? index + 1}`;
      if (index > 0) mark(parts, lane, x(first) + 3, clip(again, bad ? x(end) - x(first) - 20 : width) || "↻", "again", "start", { ...what, phase: "launched again" });
      if (bad) {
        // Its words stand before the moment, back to where it was launched again.
        const room = x(end) - (index > 0 ? x(first) + again.length * 6 + 16 : 0);
        const told = clip([life.end, life.how].filter(Boolean).join(": "), room - 22);
        parts.append(draw("line", { class: "end", x1: x(end), x2: x(end), y1: lane.marksAt, y2: lane.height }));
        mark(parts, lane, x(end) - 3, told.length > 4 ? `${told} ✕` : "✕", "mark", "end", { ...what, phase: life.end });
      }
    });
  }

  function piece(parts, lane, begin, end, kind, height, name, what) {
    const left = Math.max(x(begin), -2), right = Math.min(x(end), width + 2);
    if (right < 0 || left > width) return;
    const y = lane.lifeAt + (14 - height) / 2;
    parts.append(described(draw("rect", { class: kind, x: left, y, width: Math.max(right - left, 0.8), height }), { server: lane.server, ...what }));
    const text = clip(name, right - Math.max(left, 0) - 8);
    if (text) parts.append(draw("text", { class: "on", x: Math.max(left, 0) + 4, y: lane.lifeAt + 10.5 }, text));
  }

  function mark(parts, lane, left, text, kind, side, what) {
    if (left < 0 || left > width) return;
    const node = draw("text", { class: kind, x: left, y: lane.marksAt + 11, "text-anchor": side }, text);
    parts.append(described(node, what));
  }

  function bar(parts, outcome, left, y, length, height) {
    const hollow = HOLLOW.has(outcome), bad = BAD.has(outcome);
    const node = draw("rect", {
      class: shape(outcome), rx: 1.5, x: hollow ? left + 0.7 : left, y: (hollow ? y + 0.7 : y) - (bad ? 1 : 0),
      width: Math.max(hollow ? length - 1.4 : length, bad ? 2.5 : 1), height: hollow ? height - 1.4 : bad ? height + 2 : height,
    });
    parts.append(node);
    if (bad && length >= 9) {
      const cx = left + Math.min(length / 2, 8), cy = y + height / 2;
      parts.append(draw("path", { class: "cross", d: `M${cx - 2.6} ${cy - 2.6}l5.2 5.2m0 -5.2l-5.2 5.2` }));
    }
    return node;
  }

  function paintRow(parts, row, y) {
    // What is narrower than a pixel is drawn together, as the worst of it.
    let group = null;
    const flush = () => {
      if (!group) return;
      const node = bar(parts, group.worst.outcome, group.left, y, Math.max(group.right - group.left - 0.4, 1), BAR);
      described(node, group.tests.length > 1 ? { tests: group.tests, test: group.worst } : { test: group.worst });
      if (group.tests.length === 1) inside(parts, group.worst, group.left, group.right, y);
      group = null;
    };
    for (let index = firstEnding(row, from); index < row.length && row[index].start <= to; index++) {
      const test = row[index];
      const left = Math.max(x(test.start), -3), right = Math.min(x(test.start + test.length), width + 3);
      if (group && right - group.left < 2) {
        group.right = Math.max(right, group.right); group.tests.push(test);
        if (rank(test) > rank(group.worst)) group.worst = test;
        continue;
      }
      flush();
      group = { left, right: Math.max(right, left + 0.5), tests: [test], worst: test };
    }
    flush();
  }

  const rank = (test) => (BAD.has(test.outcome) ? 3 : test.outcome === "rerun" ? 2 : test.outcome === "passed" ? 0 : 1);

  function firstEnding(row, at) {
    let low = 0, high = row.length;
    while (low < high) { const middle = (low + high) >> 1; if (row[middle].start + row[middle].length < at) low = middle + 1; else high = middle; }
    return low;
  }

  function inside(parts, test, left, right, y) {
    const all = right - left, hollow = HOLLOW.has(test.outcome);
    if (all < 18) return;
    const [setup, , teardown] = test.phases;
    if (!hollow && setup > 0) {
      const begin = x(test.start + test.wait), w = x(test.start + setup) - x(test.start);
      if (w >= 1) parts.append(draw("rect", { class: "inner", x: begin, y, width: Math.min(w, all), height: BAR }));
    }
    if (!hollow && teardown > 0) {
      const end = x(test.start + test.length), w = x(test.start + teardown) - x(test.start);
      if (w >= 1) parts.append(draw("rect", { class: "inner", x: end - Math.min(w, all), y, width: Math.min(w, all), height: BAR }));
    }
    const at = Math.max(left, 0) + (BAD.has(test.outcome) ? 15 : 4);
    const text = clip(test.id.slice(nameAt(test.id)).replace(/^test_/, ""), Math.min(right, width) - at - 3);
    if (text.length > 5) parts.append(draw("text", { class: hollow ? "name on-hollow" : "name", x: at, y: y + 9 }, text));
  }

  function range(at) {
    let begin = at.findIndex((one) => one >= from);
    if (begin < 0) begin = at.length;
    let end = begin;
    while (end < at.length && at[end] <= to) end++;
    return [Math.max(begin - 1, 0), Math.min(end + 1, at.length)];
  }

  function paintMemory(parts, lane) {
    const { at, rss, gpu } = lane.memory;
    if (!at.length) return;
    const [begin, end] = range(at), bottom = lane.memoryAt + MEMORY;
    for (const [values, kind] of [[rss, "rss"], [gpu, "gpu"]]) {
      if (!values.length) continue;
      const most = values.reduce((peak, value) => Math.max(peak, value || 0), 1);
      // Where nothing is known, as between two lives, there is a gap.
      const runs = [[]];
      let last = null;
      for (let index = begin; index < end; index++) {
        if (last !== null && between(lane, last, at[index])) runs.push([]);
        last = at[index];
        if (values[index] === null) { runs.push([]); continue; }
        runs[runs.length - 1].push([x(at[index]).toFixed(1), (bottom - (values[index] / most) * (MEMORY - 3)).toFixed(1)]);
      }
      for (const run of runs.filter((one) => one.length)) {
        const line = `M${run.map((point) => point.join(" ")).join("L")}`;
        if (kind === "rss") parts.append(draw("path", { class: "rss", d: `${line}L${run[run.length - 1][0]} ${bottom}L${run[0][0]} ${bottom}Z` }));
        parts.append(draw("path", { class: `${kind}-line`, d: line }));
      }
    }
  }

  const between = (lane, first, second) => lane.server.lives.some((life) => life.ended !== undefined && life.ended >= first && life.ended < second);

  function paintBeats(parts, lane) {
    const { at, latency } = lane.beats;
    if (!at.length) return;
    const [begin, end] = range(at), bottom = lane.beatsAt + BEATS;
    const most = latency.reduce((peak, value) => Math.max(peak, value || 0), 1);
    let good = "", missed = "";
    for (let index = begin; index < end; index++) {
      const place = x(at[index]).toFixed(1), value = latency[index] ?? null;
      if (value === null) {
        missed += `M${place} ${bottom}V${lane.beatsAt + 7}M${place - 2.5} ${lane.beatsAt}l5 5m0 -5l-5 5`;
      } else good += `M${place} ${bottom}v${-(2 + Math.sqrt(Math.max(0, value) / most) * (BEATS - 4)).toFixed(1)}`;
    }
    if (good) parts.append(draw("path", { class: "beat", d: good }));
    if (missed) parts.append(draw("path", { class: "missed", d: missed }));
  }

  // ---- hover, drag, keys

  function listen() {
    let pressed = null;
    const place = (event) => event.clientX - axis.getBoundingClientRect().left;
    const time = (event) => from + (place(event) / width) * (to - from);
    const laneAt = (event) => lanes.find((lane) => lane.svg === event.target.closest?.("svg")) ?? null;
    chart.addEventListener("pointermove", (event) => {
      const at = place(event), inside_ = at >= 0 && at <= width;
      const left = axis.getBoundingClientRect().left - chart.getBoundingClientRect().left - 1;
      cursor.hidden = !inside_;
      if (inside_) cursor.style.left = `${left + at}px`;
      if (pressed) {
        const begin = Math.min(Math.max(Math.min(at, pressed.at), 0), width), end = Math.min(Math.max(at, pressed.at), width);
        pressed.moved ||= Math.abs(at - pressed.at) > 4;
        choice.hidden = !pressed.moved;
        choice.style.left = `${left + begin}px`;
        choice.style.width = `${Math.max(end - begin, 0)}px`;
        if (pressed.moved) { hideTip(); return; }
      }
      const lane = laneAt(event), what = descriptions.get(event.target);
      if (!lane) hideTip();
      else if (what) showTip(event, what.test ? tellTest(what) : tellLife(what));
      else showTip(event, tellMoment(lane, time(event)));
    });
    chart.addEventListener("pointerleave", () => { cursor.hidden = true; hideTip(); });
    chart.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.target.closest?.("svg") || event.pointerType === "touch") return;
      pressed = { at: place(event), what: descriptions.get(event.target), moved: false };
    });
    window.addEventListener("pointerup", (event) => {
      if (!pressed) return;
      const { at, moved } = pressed, end = place(event);
      pressed = null;
      choice.hidden = true;
      if (!moved) return;
      const clock_ = (one) => from + (Math.min(Math.max(one, 0), width) / width) * (to - from);
      dragged = true;
      setTimeout(() => { dragged = false; });
      show(clock_(Math.min(at, end)), clock_(Math.max(at, end)));
    });
    let dragged = false;
    chart.addEventListener("click", (event) => {
      const what = descriptions.get(event.target);
      if (!what || dragged) return;
      hideTip();
      if (what.test) openTest(what.test, chart); else openLife(what, chart);
    });
    chart.addEventListener("dblclick", (event) => { if (event.target.closest("svg") && !descriptions.get(event.target)) show(...full); });
    chart.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(Math.exp(event.deltaY * 0.003), time(event)); return; }
      const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
      if (Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY) && to - from < full[1]) {
        event.preventDefault();
        const by = (sideways / width) * (to - from);
        show(from + by, to + by);
      }
    }, { passive: false });
    chart.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const by = (to - from) / 5;
      const keys = {
        "+": () => zoom(1 / 1.6), "=": () => zoom(1 / 1.6), "-": () => zoom(1.6), 0: () => show(...full),
        ArrowLeft: () => show(from - by, to - by), ArrowRight: () => show(from + by, to + by),
      };
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
  }

  function showTip(event, lines) {
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
    const top = event.clientY + 16 + box.height > innerHeight ? event.clientY - 12 - box.height : event.clientY + 16;
    tip.style.left = `${Math.max(left, 6)}px`;
    tip.style.top = `${Math.max(top, 6)}px`;
  }

  function hideTip() { tip.hidden = true; }

  const line = (...texts) => make("div", {}, texts.filter(Boolean).join(" · "));
  const said = (outcome) => make("span", { class: `say ${BAD.has(outcome) ? outcome : ""}` }, swatch(outcome), outcome || "unknown");

  // In one unit, so that they add up as they are shown.
  const exact = (ms) => (ms === null ? "-" : `${(ms / 1000).toFixed(3)} s`);

  function partsOf(test) {
    const [setup, call, teardown] = test.phases;
    const known = [["waiting", test.wait || null], ["setup", setup], ["call", call], ["teardown", teardown]].filter(([, value]) => value !== null);
    const rest = (test.length ?? 0) - known.reduce((sum, [, value]) => sum + value, 0);
    return rest > 0 ? [...known, ["other", rest]] : known;
  }

  // No less than its parts, whatever rounding or a clock that was set back makes of begin and end.
  function totalOf(test) { return test.length === null ? null : partsOf(test).reduce((sum, [, value]) => sum + value, 0); }

  function metricsOf(use) {
    const tokens = [use.prompt === null ? "" : `${use.prompt} prompt`, use.generated === null ? "" : `${use.generated} generated`].filter(Boolean);
    return [
      tokens.length ? `${tokens.join(" + ")} tokens` : "", use.requests === null ? "" : `${use.requests} request${use.requests === 1 ? "" : "s"}`,
      use.errors ? `${use.errors} error${use.errors === 1 ? "" : "s"}` : "",
    ].filter(Boolean).join(", ");
  }

  const sharing = (use) => (use.shared === null ? "" : use.shared ? "shared with other tests" : "alone");

  function tellTest({ test, tests: group }) {
    const lines = [make("div", {}, make("b", {}, test.id))];
    if (group) {
      const bad = group.filter((one) => BAD.has(one.outcome)).length;
      lines.unshift(line(`${group.length} tests here`, bad ? `${bad} failed` : "none failed", "zoom in to tell them apart"));
    }
    lines.push(make("div", {}, said(test.outcome), ` · total ${exact(test.total)} = ${partsOf(test).map(([name, value]) => `${name} ${exact(value)}`).join(" + ")}`));
    lines.push(line(`at ${moment(test.start, 100)} (${clock(test.start)})`, test.worker && `worker ${test.worker}`));
    for (const use of test.uses) lines.push(line(use.server.name, sharing(use), metricsOf(use)));
    if (test.message) lines.push(make("div", { class: "said" }, test.message.slice(0, 400)));
    lines.push(line(click(test)));
    return lines;
  }

  function tellLife({ server, life, index, phase, length }) {
    const lines = [make("div", {}, make("b", {}, server.name), ` · ${phase}${length === undefined ? "" : ` for ${duration(length)}`}`)];
    lines.push(line(`launch ${life.launch ?? index + 1}`, life.pid !== undefined && `pid ${life.pid}`, life.node && `on ${life.node}`, life.taken && "taken over from an earlier run"));
    if (life.ready !== undefined && life.launched !== undefined) lines.push(line(`ready after ${duration(life.ready - life.launched)}`));
    if (life.end) lines.push(line([life.end, life.how].filter(Boolean).join(": ")));
    if (life.cause) lines.push(make("div", { class: "said" }, life.cause));
    return lines;
  }

  function tellMoment(lane, at) {
    const lines = [make("div", {}, `${moment(at, 100)} (${clock(at)})`)];
    if (!lane.server) return lines;
    const near = (times) => { let best = -1; times.forEach((one, index) => { if (best < 0 || Math.abs(one - at) < Math.abs(times[best] - at)) best = index; }); return best; };
    const close = (to - from) / 40 + 2000;
    const index = near(lane.memory.at), beat = near(lane.beats.at);
    if (index >= 0 && Math.abs(lane.memory.at[index] - at) < close) {
      const [rss, gpu] = [lane.memory.rss[index] ?? null, lane.memory.gpu[index] ?? null];
      lines.push(line(rss !== null && `memory ${size(rss * 1e5)}`, gpu !== null && `GPU ${size(gpu * 1e5)}`));
    }
    if (beat >= 0 && Math.abs(lane.beats.at[beat] - at) < close * 3) {
      const latency = lane.beats.latency[beat] ?? null;
      lines.push(line(latency === null ? "heartbeat failed" : `heartbeat ${duration(latency / 1000)}`));
    }
    return lines;
  }

  // ---- the panel

  const panel = make("aside", { class: "panel", role: "dialog", "aria-labelledby": "panel-title", tabindex: "-1", hidden: "" });
  let opener = null, opened = null;
  let onOpened = () => {};

  function close() {
    if (panel.hidden) return;
    panel.hidden = true;
    opened = null;
    onOpened();
    opener?.focus({ preventScroll: true });
  }

  function open(what, title, from_, ...children) {
    [opener, opened] = [from_, what];
    onOpened();
    panel.replaceChildren(make("button", { type: "button", class: "close", "aria-label": "Close", onclick: close }, "✕"), ...children.slice(0, 1),
      make("h2", { id: "panel-title" }, ...title.split(/(?<=\/|::|\[)/).flatMap((part, index) => (index ? [make("wbr"), part] : [part]))), ...children.slice(1));
    panel.hidden = false;
    panel.scrollTop = 0;
    panel.focus({ preventScroll: true });
  }

  function facts(...pairs) {
    const list = make("dl");
    for (const [name, value] of pairs) if (value !== "" && value !== null && value !== undefined) list.append(make("dt", { title: meaning(name) }, name), make("dd", {}, value));
    return list;
  }

  function openTest(test, from_) {
    const parts = [facts(
      ["total", exact(test.total)], ...partsOf(test).map(([name, value]) => [name, exact(value)]),
      ["started", test.start === null ? "" : `${moment(test.start, 100)} (${clock(test.start)})`], ["worker", test.worker],
    )];
    if (test.message) parts.push(make("pre", { class: "said" }, test.message));
    for (const [title, text] of test.details) parts.push(make("h3", {}, title), make("pre", { class: "details", tabindex: "0", "aria-label": title }, text));
    for (const use of test.uses) {
      parts.push(make("h3", {}, use.server.name), facts(
        ["server", [use.server.backend, use.server.model].filter(Boolean).join(" · ")], ["launch", use.launch], ["used", sharing(use)],
        ["engine", metricsOf(use)],
        ["log", use.logStart === null ? (use.server.log ? anchor("log", use.server.log) : "")
          : make("span", {}, anchor("log", use.server.log), use.logLength === null ? ` from byte ${use.logStart}` : `, bytes ${use.logStart} to ${use.logStart + use.logLength}`)],
      ));
      if (use.text) parts.push(make("pre", { class: "log", tabindex: "0", "aria-label": "log during this test" }, use.text));
      else if (use.logLength > 0) parts.push(make("p", { class: "faint" }, "What it logged meanwhile is in its log."));
      else if (use.logLength === 0) parts.push(make("p", { class: "faint" }, "It logged nothing meanwhile."));
    }
    if (test.artifacts.length) {
      parts.push(make("h3", {}, "Artifacts"), make("ul", {}, ...test.artifacts.map(([text, address]) => make("li", {}, anchor(text, address)))));
    }
    open(test, test.id, from_, said(test.outcome), ...parts);
  }

  function openLife({ server, life, index }, from_) {
    const booted = life.ready ?? life.stopping ?? life.ended ?? data.end;
    const phases = life.launched === undefined ? [] : [[life.launched, "launching"], ...life.phases];
    const parts = [facts(
      ["server", [server.backend, server.model].filter(Boolean).join(" · ")], ["launched", life.launched === undefined ? "" : `${moment(life.launched, 100)} (${clock(life.launched)})`],
      ["ready after", life.ready !== undefined && life.launched !== undefined ? duration(life.ready - life.launched) : ""],
      ["stop took", life.stopping !== undefined && life.ended !== undefined ? duration(life.ended - life.stopping) : ""],
      ["pid", life.pid === undefined ? "" : String(life.pid)], ["node", life.node], ["end", [life.end, life.how].filter(Boolean).join(": ")], ["log", server.log ? anchor("log", server.log) : ""],
    )];
    if (life.cause) parts.push(make("pre", { class: "said" }, life.cause));
    if (phases.length) {
      parts.push(make("h3", {}, "Boot"), facts(...phases.map(([at, name], number) => [duration((number + 1 < phases.length ? phases[number + 1][0] : booted) - at), name])));
    }
    open(life, server.name, from_, make("span", { class: "faint", title: meaning("launch") }, `launch ${life.launch ?? index + 1}${life.taken ? ", taken over from an earlier run" : ""}`), ...parts);
  }

  // ---- the list of tests: only the rows in sight are there

  function buildList() {
    const section = document.getElementById("tests");
    if (!tests.length) return;
    const find = make("input", { class: "find", type: "search", placeholder: "filter by name, server or worker", "aria-label": "Filter the tests" });
    const bad = make("input", { type: "checkbox" });
    const order = make("select", { "aria-label": "Order of the tests" }, make("option", { value: "time" }, "in order of time"), make("option", { value: "length" }, "longest first"));
    const told = make("span", { class: "faint", role: "status" });
    const view = make("div", { class: "view", role: "tree", tabindex: "0", "aria-label": "Tests; Enter opens one" });
    const space = make("div", { role: "presentation" });
    const nothing = make("div", { class: "none", hidden: "" }, "No test fits.");
    let shown = tests, active = 0, first = -1, last = -1;
    onOpened = () => fill(true);
    for (const test of tests) test.where = test.uses.map((use) => use.server.name).join(", ");

    function filter() {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (test) => words.every((word) => test.low.includes(word) || test.where.toLowerCase().includes(word) || test.worker.toLowerCase() === word || test.outcome === word);
      shown = tests.filter((test) => (!bad.checked || BAD.has(test.outcome)) && fits(test));
      if (order.value === "length") shown = shown.slice().sort((one, other) => (other.total ?? -1) - (one.total ?? -1));
      told.textContent = shown.length === tests.length ? `${tests.length}` : `${shown.length} of ${tests.length}`;
      active = 0;
      view.scrollTop = 0;
      view.hidden = !shown.length;
      nothing.hidden = shown.length > 0;
      fill(true);
    }

    function fill(anew, all) {
      const begin = all ? 0 : Math.max(Math.floor(view.scrollTop / LINE) - 8, 0);
      const end = Math.min(all ? 2000 : begin + Math.ceil((view.clientHeight || 400) / LINE) + 16, shown.length);
      if (!anew && begin === first && end === last) return;
      [first, last] = [begin, end];
      space.style.height = `${(all ? end : shown.length) * LINE}px`;
      space.replaceChildren(...shown.slice(begin, end).map((test, offset) => entry(test, begin + offset)));
      view.setAttribute("aria-activedescendant", shown.length && active >= begin && active < end ? `test-${shown[active].index}` : "");
    }

    function entry(test, place) {
      const row = make("div", { class: place === active ? "row active" : "row", role: "treeitem", id: `test-${test.index}`, "aria-selected": String(place === active),
        "aria-expanded": String(test === opened), "aria-level": 1, "aria-setsize": shown.length, "aria-posinset": place + 1, title: [click(test), test.message.slice(0, 300)].filter(Boolean).join("\n") },
        make("span", { class: "opens", "aria-hidden": "true" }, test === opened ? "▾" : "▸"), said(test.outcome), make("span", { class: "id" }, make("span", { class: "dim" }, test.id.slice(0, nameAt(test.id))), make("span", {}, test.id.slice(nameAt(test.id)))), make("span", { class: "dim wide" }, test.where), make("span", { class: "num" }, duration(test.total)),
        make("span", { class: "num wide" }, test.start === null ? "" : moment(test.start, 100)), make("span", { class: "dim wide" }, test.worker));
      row.style.top = `${place * LINE}px`;
      row.addEventListener("click", () => { active = place; openTest(test, view); });
      return row;
    }

    function move(to_) {
      active = Math.min(Math.max(to_, 0), shown.length - 1);
      const top = active * LINE;
      if (top < view.scrollTop) view.scrollTop = top;
      else if (top + LINE > view.scrollTop + view.clientHeight) view.scrollTop = top + LINE - view.clientHeight;
      fill(true);
    }

    view.addEventListener("keydown", (event) => {
      const page = Math.max(Math.floor(view.clientHeight / LINE) - 1, 1);
      const keys = {
        ArrowDown: () => move(active + 1), ArrowUp: () => move(active - 1), PageDown: () => move(active + page), PageUp: () => move(active - page),
        Home: () => move(0), End: () => move(shown.length - 1), Enter: () => shown[active] && openTest(shown[active], view), " ": () => shown[active] && openTest(shown[active], view),
      };
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
    view.addEventListener("scroll", () => fill(false));
    addEventListener("resize", () => fill(true));
    addEventListener("beforeprint", () => fill(true, true));
    addEventListener("afterprint", () => fill(true));
    find.addEventListener("input", filter);
    bad.addEventListener("change", filter);
    order.addEventListener("change", filter);
    view.append(space);
    const names = make("div", { class: "row names", "aria-hidden": "true" }, make("span"), make("span", {}, "outcome"), make("span", {}, "test"), make("span", { class: "wide" }, "server"),
      make("span", { class: "num", title: meaning("total") }, "total"), make("span", { class: "num wide" }, "at"), make("span", { class: "wide" }, "worker"));
    section.append(make("div", { class: "bar" }, make("h2", {}, "Tests"), told, make("span", { class: "grow" }), find,
      make("label", { class: "check" }, bad, `failed only (${count(true)})`), order), make("div", { class: "list" }, names, view, nothing));
    section.hidden = false;
    filter();
  }

  document.body.append(panel);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { hideTip(); close(); } });
  if (lanes.length) build();
  buildList();
})();
