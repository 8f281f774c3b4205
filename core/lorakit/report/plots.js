"use strict";
// Draws each plot of the page from the numbers beside it, in the page's own colours, and again when those change.
const HEIGHT = 210, DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]], COLOURS = ["--one", "--two", "--three", "--four"];
const places = [...document.querySelectorAll(".drawn")];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

function curves(told) {
  const data = [told.at], series = [{ label: "update" }], bands = [], hidden = [];
  told.lines.forEach((line, place) => {
    const ink = colour(COLOURS[place % COLOURS.length]), faint = line.kind === "faint";
    if (line.errors.length) {
      for (const sign of [1, -1]) {
        data.push(line.values.map((one, n) => (one === null ? null : one + sign * (line.errors[n] ?? 0))));
        series.push({ label: "", stroke: "transparent", points: { show: false } });
        hidden.push(series.length - 1);
      }
      bands.push({ series: [series.length - 2, series.length - 1], fill: ink + "38" });
    }
    data.push(line.values);
    series.push({
      label: line.name, stroke: faint ? ink + "80" : ink, width: faint ? 1 : 2, spanGaps: true,
      dash: told.lines.length > 1 && !faint ? DASHES[place % DASHES.length] : [],
      value: (plot, value) => (value == null ? "–" : short(value) + (told.unit ? " " + told.unit : "")),
    });
  });
  return { data, series, bands, hidden };
}

function mark(plot, update) {
  if (update === null) return;
  const x = plot.valToPos(update, "x", true), { top, height } = plot.bbox, pen = plot.ctx;
  pen.save();
  pen.strokeStyle = colour("--good");
  pen.lineWidth = 2 * devicePixelRatio;
  pen.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  pen.beginPath();
  pen.moveTo(x, top);
  pen.lineTo(x, top + height);
  pen.stroke();
  pen.restore();
}

function draw(place) {
  const told = JSON.parse(document.getElementById(place.dataset.numbers).textContent);
  const { data, series, bands, hidden } = curves(told);
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
  place.replaceChildren();
  place.plot = new uPlot({
    width: place.clientWidth, height: HEIGHT, series, bands,
    scales: { x: { time: false } },
    cursor: { sync: { key: "updates", setSeries: false } },
    axes: [{ ...axis, size: 34 }, { ...axis, size: 64, values: (plot, values) => values.map(short) }],
    hooks: {
      init: [(plot) => {
        const rows = plot.root.querySelectorAll(".u-legend .u-series");
        for (const one of hidden) rows[one].style.display = "none";
      }],
      draw: [(plot) => mark(plot, told.mark)],
    },
  }, data, place);
}

const all = () => places.forEach(draw);
all();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
const watch = new ResizeObserver((seen) => {
  for (const { target } of seen) {
    if (target.plot && target.plot.width !== target.clientWidth) {
      target.plot.setSize({ width: target.clientWidth, height: HEIGHT });
    }
  }
});
places.forEach((place) => watch.observe(place));
