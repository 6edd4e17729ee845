
"use strict";
document.documentElement.classList.add("js");

// Tables: a head sorts its column, numbers as numbers, what is missing always last.
function sortTable(button) {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const column = Number(button.dataset.column), first = button.dataset.first || "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const numeric = head.classList.contains("number");
  const keyed = Array.from(body.rows, (row) => {
    const cell = row.cells[column];
    const key = numeric ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent.trim();
    return { row, key: key === "-" || key === "" ? null : key };
  });
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return sign * (numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true }));
  });
  for (const each of table.querySelectorAll("th[aria-sort]")) each.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  body.append(...keyed.map((each) => each.row));
}
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortTable(button));

// Legends: a name brings out its series in the charts of the section, while it is pointed at or until it is pressed again.
function bringOut(section, name) {
  for (const series of section.querySelectorAll(".series")) series.classList.toggle("dim", name !== null && series.dataset.series !== name);
}
for (const legend of document.querySelectorAll(".legend")) {
  const section = legend.closest("section");
  const pressed = () => {
    const button = section.querySelector('.legend button[aria-pressed="true"]');
    return button ? button.dataset.series : null;
  };
  for (const button of legend.querySelectorAll("button")) {
    const name = button.dataset.series;
    button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") bringOut(section, name); });
    button.addEventListener("pointerleave", () => bringOut(section, pressed()));
    button.addEventListener("click", () => {
      const chosen = pressed() === name ? null : name;
      for (const each of section.querySelectorAll(".legend button"))
        each.setAttribute("aria-pressed", String(each.dataset.series === chosen));
      bringOut(section, chosen);
    });
  }
}

// Charts: values beside the nearest point, under the pointer or the finger, or of the point that the arrow keys moved to.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), points = Array.from(figure.querySelectorAll(".point"));
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  let shown = null;
  for (const point of points) {
    point.querySelector("title").remove();
    const place = point.transform.baseVal[0].matrix;
    point.place = [place.e, place.f];
  }
  const series = (point) => point.parentNode.dataset.series;
  const line = (name, value, on) => {
    const row = document.createElement("div"), left = document.createElement("span"), right = document.createElement("span");
    left.textContent = name;
    right.textContent = value;
    row.className = on ? "on" : "";
    row.append(left, right);
    return row;
  };
  const hide = () => {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  };
  const show = (point) => {
    if (point === shown) return;
    hide();
    shown = point;
    point.classList.add("on");
    const head = document.createElement("b");
    if (figure.classList.contains("joined")) {
      head.textContent = point.dataset.x;
      const beside = points.filter((each) => each.dataset.x === point.dataset.x && !each.parentNode.classList.contains("dim"));
      beside.sort((a, b) => b.dataset.order - a.dataset.order);
      tip.replaceChildren(head, ...beside.map((each) => line(series(each), each.dataset.value, each === point)));
    } else {
      head.textContent = series(point);
      tip.replaceChildren(head, line(point.dataset.value, point.dataset.x, true));
    }
    tip.hidden = false;
    const box = figure.getBoundingClientRect(), drawing = svg.getBoundingClientRect();
    const scale = drawing.width / svg.viewBox.baseVal.width;
    const x = drawing.left - box.left + scale * point.place[0], y = drawing.top - box.top + scale * point.place[1];
    const left = x + 14 + tip.offsetWidth > box.width ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = Math.max(0, Math.min(left, box.width - tip.offsetWidth)) + "px";
    tip.style.top = Math.max(0, Math.min(y - tip.offsetHeight / 2, box.height - tip.offsetHeight)) + "px";
  };
  const nearest = (event) => {
    const drawing = svg.getBoundingClientRect(), scale = drawing.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - drawing.left) / scale, y = (event.clientY - drawing.top) / scale;
    let best = null, closest = 60;
    for (const point of points) {
      if (point.parentNode.classList.contains("dim")) continue;
      const distance = Math.hypot(point.place[0] - x, point.place[1] - y);
      if (distance < closest) [best, closest] = [point, distance];
    }
    return best;
  };
  const follow = (event) => {
    const point = nearest(event);
    if (point) show(point);
    else hide();
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  // A finger leaves when it is lifted, which is when people read.
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  document.addEventListener("pointerdown", (event) => { if (!svg.contains(event.target)) hide(); });
  if (points.length) points[0].setAttribute("tabindex", "0");
  svg.addEventListener("focusin", (event) => show(event.target.closest(".point")));
  svg.addEventListener("focusout", hide);
  svg.addEventListener("keydown", (event) => {
    const current = event.target.closest(".point");
    if (event.key === "Escape") hide();
    if (!current || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const along = points.filter((each) => series(each) === series(current));
    const beside = points.filter((each) => each.dataset.x === current.dataset.x).sort((a, b) => a.dataset.order - b.dataset.order);
    const forward = event.key === "ArrowRight" || event.key === "ArrowUp" ? 1 : -1;
    const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
    // In a scatter every series has one point: left and right go through all, by their place.
    const all = points.slice().sort((a, b) => a.place[0] - b.place[0]);
    const among = !figure.classList.contains("joined") ? all : sideways ? along : beside;
    const next = among[among.indexOf(current) + forward];
    if (!next) return;
    current.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      const selection = getSelection();
      selection.selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = Array.from(document.querySelectorAll("details:not([open])"));
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
