"use strict";
// Where names of points stand in panels of plotly; for paper it is point_names.py that places them.
const pointNames = (() => {
  // To which side of its point a name can stand, across and up, as in point_names.py.
  const sides = [[1, 1], [-1, 1], [1, -1], [-1, -1], [0, 1], [0, -1], [1, 0], [-1, 0]];
  const pen = document.createElement("canvas").getContext("2d");
  const size = 11; // of letters
  const apart = 5.5;

  // Ends of an axis that leave room for names, of all values and ends of ranges; of a log axis as powers of ten.
  function roomy(about, values, share) {
    const known = values.filter((value) => value !== null).map((value) => (about.scale === "log" ? Math.log10(value) : value));
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const room = share * (high - low || Math.abs(high) || 1);
    return { range: [low - room, high + room] };
  }

  const shared = (a, b) =>
    Math.max(0, Math.min(a[1], b[1]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[2], b[2]));

  // Names stand where they neither cover one another nor leave the panel, as far as there is room.
  function place(panel, plot) {
    const area = plot.querySelector(".nsewdrag");
    if (!area || !panel.lines || !panel.lines.some((line) => line.names.length)) return;
    const { width, height } = area.getBoundingClientRect();
    const { xaxis, yaxis } = plot.layout;
    const along = (value, about, look, length) => {
      const [low, high] = look.range;
      return (((about.scale === "log" ? Math.log10(value) : value) - low) / (high - low)) * length;
    };
    const box = (x, y, low, high) => [x - apart / 2, x + apart / 2, Math.min(low, y - apart / 2), Math.max(high, y + apart / 2)];
    const named = plot.data.map((trace, n) => [trace, n]).filter(([trace]) => trace.text);
    const up = (value) => along(value, panel.y, yaxis, height);
    const points = named.flatMap(([trace]) => trace.x.map((x, i) => [along(x, panel.x, xaxis, width), up(trace.y[i])]));
    // What names are not to cover: the points, with their intervals.
    const ends = named.flatMap(([trace]) => trace.y.map((y, i) => (
      trace.error_y ? [up(y - trace.error_y.arrayminus[i]), up(y + trace.error_y.array[i])] : [up(y), up(y)]
    )));
    const dots = points.map(([x, y], i) => box(x, y, ...ends[i]));
    pen.font = `${size}px system-ui, sans-serif`;
    const taken = [];
    let next = 0;
    named.forEach(([trace, n]) => {
      const textposition = trace.text.map((text) => {
        const own = [pen.measureText(text).width, 1.3 * size];
        const point = points[next++];
        const boxOf = (side) => [0, 1].flatMap((way) => {
          const middle = point[way] + side[way] * (apart + own[way] / 2);
          return [middle - own[way] / 2, middle + own[way] / 2];
        });
        const sum = (box, others) => others.reduce((found, other) => found + shared(box, other), 0);
        // A name that cannot be read is worse than one across a bar.
        const covered = (box) =>
          100 * (own[0] * own[1] - shared(box, [0, width, 0, height]) + sum(box, taken)) + sum(box, dots);
        const best = sides.reduce((one, two) => (covered(boxOf(two)) < covered(boxOf(one)) ? two : one));
        taken.push(boxOf(best));
        return `${["bottom", "middle", "top"][best[1] + 1]} ${["left", "center", "right"][best[0] + 1]}`;
      });
      Plotly.restyle(plot, { textposition: [textposition] }, [n]);
    });
  }

  return { roomy, place, size };
})();
