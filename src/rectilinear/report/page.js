"use strict";
// Draws the charts of the page, which are rectilinear's own (src/rectilinear/charts.py), with plotly.
(() => {
  const { charts, floor, ceiling } = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const dashes = { solid: "solid", dashed: "dash", dotted: "dot", "dash-dotted": "dashdot" };
  const symbols = {
    circle: "circle", square: "square", triangle: "triangle-up", diamond: "diamond", down: "triangle-down",
    plus: "cross", cross: "x",
  };
  // The same marks as lines of 28 by 10 have in the keys.
  const marks = {
    circle: '<circle cx="14" cy="5" r="3"/>', square: '<path d="M11 2h6v6h-6z"/>', triangle: '<path d="M14 1.5l3.5 6.5h-7z"/>',
    diamond: '<path d="M14 1l4 4l-4 4l-4 -4z"/>', down: '<path d="M14 8.5l3.5 -6.5h-7z"/>',
    plus: '<path d="M13 1.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5v-2h2.5z"/>', cross: '<path d="M11 2l6 6M17 2l-6 6"/>',
  };
  const paint = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shown = (value) => (value === null ? "-" : String(+value.toPrecision(5)));
  const gap = (score) => (score === null ? null : -Math.log10(1 - Math.min(score, ceiling)));
  const isScore = (axis) => axis.scale.startsWith("score");

  // Runs of points that have a range; a gap ends a run.
  function runs(line) {
    const found = [];
    line.x.forEach((x, i) => {
      if (line.low[i] === null || line.high[i] === null) return found.push([]);
      if (!found.length) found.push([]);
      found[found.length - 1].push(i);
    });
    return found.filter((run) => run.length);
  }

  function bands(line, scaled, color) {
    return runs(line).map((run) => {
      const back = [...run].reverse();
      return {
        x: [...run, ...back].map((i) => line.x[i]),
        y: [...run.map((i) => scaled(line.high[i])), ...back.map((i) => scaled(line.low[i]))],
        type: "scatter", mode: "lines", fill: "toself", line: { width: 0 }, fillcolor: color, opacity: 0.18,
        hoverinfo: "skip", showlegend: false,
      };
    });
  }

  function bars(values, low, high, scaled, color) {
    const ends = values.map((value, i) => (low[i] === null ? [0, 0] : [
      scaled(value) - scaled(low[i]), scaled(high[i]) - scaled(value),
    ]));
    return {
      type: "data", symmetric: false, arrayminus: ends.map((e) => e[0]), array: ends.map((e) => e[1]), color,
      thickness: 1.2, width: 3,
    };
  }

  function said(panel, line, i) {
    const place = panel.x.ticks.length ? panel.x.ticks[Math.round(line.x[i])] : shown(line.x[i]);
    const range = line.low.length && line.low[i] !== null ? ` (${shown(line.low[i])} to ${shown(line.high[i])})` : "";
    const name = line.names.length ? `<br>${escaped(line.names[i])}` : "";
    const x = panel.x.whole || panel.x.ticks.length ? `${panel.x.label.split(" (")[0]} ${place}` : `at ${place}`;
    const across = line.left.length && line.left[i] !== null ? ` (${shown(line.left[i])} to ${shown(line.right[i])})` : "";
    const value = line.edge ? "" : `: <b>${shown(line.y[i])}</b>`;
    return `${escaped(line.label)}${name}<br>${escaped(x)}${across}${value}${range}`;
  }

  function lineTraces(panel, line, scaled) {
    const color = paint(line.color);
    if (line.edge) {
      return [{
        x: line.x, y: line.x.map(() => 0), yaxis: "y2", type: "scatter", mode: "markers", cliponaxis: false,
        marker: { symbol: symbols[line.marker], size: 7, color }, showlegend: false,
        hovertext: line.x.map((_, i) => said(panel, line, i)), hoverinfo: "text",
      }];
    }
    const found = line.low.length && line.spread === "band" ? bands(line, scaled, color) : [];
    if (line.dash === "none" && !line.marker) return found;
    const mode = [line.dash !== "none" && "lines", line.marker && "markers", line.names.length && "text"];
    const trace = {
      x: line.x, y: line.y.map(scaled), type: "scatter", mode: mode.filter(Boolean).join("+"),
      line: { color, width: line.width * 1.4, dash: dashes[line.dash] || "solid" },
      marker: { symbol: symbols[line.marker], size: 7, color: paint("paper"), line: { color, width: 1.5 } },
      hovertext: line.x.map((_, i) => said(panel, line, i)), hoverinfo: "text", showlegend: false,
    };
    if (line.names.length) Object.assign(trace, { text: line.names.map(escaped), textfont: { size: pointNames.size } });
    if (line.low.length && line.spread === "bars") trace.error_y = bars(line.y, line.low, line.high, scaled, color);
    if (line.left.length) trace.error_x = bars(line.x, line.left, line.right, (x) => x, color);
    return [...found, trace];
  }

  function spaced(ticks, width) {
    const longest = Math.max(...ticks.map((tick) => tick.length)) * 8 + 12;
    const stride = Math.max(1, Math.ceil((ticks.length * longest) / width));
    const places = ticks.map((_, i) => i).filter((i) => i % stride === 0);
    return { tickvals: places, ticktext: places.map((i) => escaped(ticks[i])) };
  }

  // How many powers of ten the values of a panel go over, across or up.
  function decadesOf(panel, name) {
    const values = (panel.lines || []).flatMap((line) => line[name]).filter((value) => value > 0);
    return values.length ? Math.log10(Math.max(...values) / Math.min(...values)) : 0;
  }

  // From one label of a whole number to the next: 1, 2, 5, 10, ..., so that no two are alike.
  function strideOf(panel, name, width) {
    const places = panel.cells ? [0, (name === "x" ? panel.cells[0] : panel.cells).length - 1]
      : (panel.lines || []).flatMap((line) => line[name]).filter((value) => value !== null);
    const most = Math.max(2, Math.min(11, width / 45)), span = places.length ? Math.max(...places) - Math.min(...places) : 1;
    let power = 1;
    while (span / (5 * power) > most) power *= 10;
    return [1, 2, 5].map((digit) => digit * power).find((stride) => span / stride <= most);
  }

  function axis(panel, name, width) {
    const about = panel[name], decades = decadesOf(panel, name);
    const look = {
      title: { text: escaped(about.label), font: { size: 12 }, standoff: 8 }, gridcolor: paint("rule"), zeroline: false,
      linecolor: paint("soft"), automargin: true, tickfont: { size: 11 },
    };
    if (about.ticks.length) Object.assign(look, spaced(about.ticks, width), { range: [-0.5, about.ticks.length - 0.5] });
    else if (about.whole) Object.assign(look, { tickformat: ",d", tick0: 0, dtick: strideOf(panel, name, width) });
    if (about.scale === "log") Object.assign(look, { type: "log", dtick: decades > 1.5 ? 1 : "D2" });
    return look;
  }

  function scoreAxis(panel, lines, log) {
    const values = lines.flatMap((line) => line.y).filter((value) => value !== null);
    const ends = lines.flatMap((line) => [...line.y, ...line.low]).filter((value) => value !== null);
    const low = Math.max(Math.min(0, ...ends), floor);
    if (!log) return { range: [low - 0.02, 1.02] };
    const best = Math.min(Math.max(0, ...values), ceiling);
    const nines = Math.max(1, Math.ceil(-Math.log10(1 - best) - 1e-9));
    const ticks = [0, 0.5, ...Array.from({ length: nines }, (_, n) => 1 - 10 ** -(n + 1))];
    return {
      range: [gap(low) - 0.05 * nines, nines + 0.15], tickvals: ticks.map(gap),
      ticktext: ticks.map((tick, n) => tick.toFixed(Math.max(1, n - 1))),
    };
  }

  function drawing(panel, state, width) {
    const layout = {
      margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: paint("ink"), family: "system-ui, sans-serif" }, hovermode: "closest",
      hoverlabel: { bgcolor: paint("raised"), font: { color: paint("ink") } }, xaxis: axis(panel, "x", width),
      // Else it is grey on grey, as the figure itself has no colour behind it.
      modebar: { bgcolor: "rgba(0,0,0,0)", color: paint("soft"), activecolor: paint("ink") }, yaxis: axis(panel, "y", 400),
    };
    if (panel.cells) {
      const across = (x) => (panel.x.ticks.length ? escaped(panel.x.ticks[x]) : x);
      const down = panel.y.label;
      const text = panel.cells.map((row, y) => row.map((value, x) =>
        `${escaped(panel.x.label || "at")} ${across(x)}<br>${escaped(down)} ${y}: <b>${shown(value)}</b>`));
      return {
        layout, traces: [{
          type: "heatmap", z: panel.cells, zmin: panel.low, zmax: panel.high, colorscale: "Cividis", hovertext: text,
          hoverinfo: "text", hoverongaps: false, xgap: 0.5, ygap: 0.5,
          colorbar: { title: { text: escaped(panel.color), side: "right" }, thickness: 12, outlinewidth: 0 },
        }],
      };
    }
    const lines = panel.lines.filter((line) => !state.hidden.has(line.label || line.color));
    const log = isScore(panel.y) && (state.log === null ? panel.y.scale === "score_log" : state.log);
    const valued = lines.filter((line) => !line.edge);
    if (isScore(panel.y)) Object.assign(layout.yaxis, scoreAxis(panel, valued, log));
    if (lines.some((line) => line.edge)) layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
    if (lines.some((line) => line.names.length)) {
      Object.assign(layout.xaxis, pointNames.roomy(panel.x, lines.flatMap((line) => [...line.x, ...line.left, ...line.right]), 0.08));
      Object.assign(layout.yaxis, pointNames.roomy(panel.y, lines.flatMap((line) => [...line.y, ...line.low, ...line.high]), 0.15));
    }
    return { layout, traces: lines.flatMap((line) => lineTraces(panel, line, log ? gap : (value) => value)) };
  }

  function swatch(line) {
    const dash = { dashed: "5 3", dotted: "1.5 2.5", "dash-dotted": "5 2 1.5 2" }[line.dash] || "none";
    const stroke = line.dash === "none" ? "" : `<line x1="0" y1="5" x2="28" y2="5" stroke-dasharray="${dash}"/>`;
    const fill = line.edge ? `var(--${line.color})` : "var(--paper)";
    const dot = line.marker ? `<g class="${line.marker}" fill="${fill}" stroke-width="1.5">${marks[line.marker]}</g>` : "";
    return `<svg viewBox="0 0 28 10" stroke="var(--${line.color})" stroke-width="2">${stroke}${dot}</svg>`;
  }

  function button(kind, label, pressed, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.className = kind;
    made.append(label);
    made.setAttribute("aria-pressed", pressed);
    made.addEventListener("click", () => made.setAttribute("aria-pressed", act()));
    return made;
  }

  function prepare(figure) {
    const chart = charts[figure.dataset.chart];
    const state = { hidden: new Set(), log: null };
    const plots = chart.panels.map((panel) => {
      const place = document.createElement("div");
      place.className = "panel";
      const title = document.createElement("h4");
      const plot = document.createElement("div");
      title.textContent = panel.title;
      plot.className = "plot";
      place.append(title, plot);
      return { panel, place, plot };
    });
    const panels = figure.querySelector(".panels");
    panels.classList.toggle("single", chart.columns === 1 || chart.panels.length === 1);
    panels.append(...plots.map(({ place }) => place));
    const draw = () => plots.forEach(({ panel, plot }) => {
      const { traces, layout } = drawing(panel, state, plot.clientWidth || 400);
      const image = { format: "svg", filename: chart.name };
      Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, toImageButtonOptions: image })
        .then(() => pointNames.place(panel, plot));
    });
    const keys = figure.querySelector(".keys");
    const lines = chart.panels.flatMap((panel) => panel.lines || []);
    const scores = chart.panels.filter((panel) => isScore(panel.y));
    if (scores.length) {
      // Between how the figure was made, of which some panels may be so, and the other way.
      const logs = scores.some((panel) => panel.y.scale === "score_log");
      keys.append(button("scale", "log₁₀(1 − score)", logs, () => {
        state.log = state.log === null ? !logs : null;
        draw();
        return state.log === null ? logs : state.log;
      }));
    }
    new Map(lines.filter((line) => line.label).map((line) => [line.label, line])).forEach((line, label) => {
      const made = button("key", label, true, () => {
        const names = [label, ...lines.filter((other) => !other.label && other.color === line.color).map((o) => o.color)];
        const hide = !state.hidden.has(label);
        names.forEach((name) => (hide ? state.hidden.add(name) : state.hidden.delete(name)));
        draw();
        return !hide;
      });
      made.insertAdjacentHTML("afterbegin", swatch(line));
      keys.append(made);
    });
    return draw;
  }

  const draws = [...document.querySelectorAll("figure[data-chart]")].map(prepare);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function show(theme) {
    root.dataset.theme = theme;
    draws.forEach((draw) => draw());
  }
  const usual = () => chosen || (dark.matches ? "dark" : "light");
  document.getElementById("theme").addEventListener("click", () => {
    chosen = usual() === "dark" ? "light" : "dark";
    show(chosen);
  });
  dark.addEventListener("change", () => show(usual()));
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => draws.forEach((draw) => draw()), 200);
  });
  // Tables that go on to the right say so.
  document.querySelectorAll(".scroll").forEach((place) => {
    const look = () => {
      place.previousElementSibling.hidden = place.scrollWidth <= place.clientWidth + 1; // sizes are rounded
      place.classList.toggle("more", place.scrollLeft + place.clientWidth < place.scrollWidth - 1);
    };
    new ResizeObserver(look).observe(place);
    place.addEventListener("scroll", look);
  });
  // On paper everything is open, and ink is dark.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => (part.open = true));
    show("light");
  });
  addEventListener("afterprint", () => {
    closed.forEach((part) => (part.open = false));
    show(usual());
  });
  show(usual());
})();
