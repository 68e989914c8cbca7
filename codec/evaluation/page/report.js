"use strict";
(() => {
  // one player at a time
  document.addEventListener("play", (event) => {
    for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
  }, true);

  // players learn how long their files are once they can be seen; hundreds at once would be too many
  document.addEventListener("toggle", (event) => wake(event.target), true);
  const wake = (example) => {
    for (const player of example.querySelectorAll("audio")) player.preload = "metadata";
  };
  document.querySelectorAll("details[open]").forEach(wake);

  // a link to an example opens it
  const reveal = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();

  // the right edge of a table fades where there is more to scroll to
  const fade = (box) => box.classList.toggle("cut", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => fade(target.closest(".scroll"))));
  for (const box of document.querySelectorAll(".scroll")) {
    box.addEventListener("scroll", () => fade(box), { passive: true });
    sizes.observe(box);
    sizes.observe(box.firstElementChild); // filters change the table's width
  }

  // the table of files: its data as rows of values, of which some are shown
  const data = JSON.parse(document.getElementById("files-data").textContent);
  const table = document.getElementById("files-table");
  const heads = [...table.tHead.rows[0].cells];
  const system = document.getElementById("files-system");
  const find = document.getElementById("files-find");
  const status = document.getElementById("files-status");
  const all = document.getElementById("files-all");
  const place = Object.fromEntries(data.columns.map((column, i) => [column.key, i]));
  const names = new Intl.Collator(undefined, { numeric: true });
  let sorted = { column: place.rank, sign: 1 };
  const more = 2000; // rows a browser lays out in a second or two
  let limit = data.shown;

  const number = (value, digits) => {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
  };

  const shown = (row, i) => (i === place.system ? data.systems[row[i]] : row[i]);

  const compare = (a, b) => {
    const { column, sign } = sorted;
    const x = shown(a, column), y = shown(b, column);
    const gone = (x === null || x === "") - (y === null || y === "");
    if (gone) return gone; // no value is neither large nor small: last either way
    if (x === null || x === "") return 0;
    return sign * (typeof x === "number" ? x - y : names.compare(x, y));
  };

  // as files.html.j2 makes it
  const element = (row) => {
    const line = document.createElement("tr");
    if (row[place.rank] !== null && row[place.rank] <= data.worst) line.className = "worst";
    data.columns.forEach(({ key, digits }, i) => {
      const cell = line.appendChild(document.createElement(key === "id" ? "th" : "td"));
      const value = shown(row, i);
      if (key === "id") cell.scope = "row";
      if (digits >= 0) cell.className = "num";
      if (key === "failures" && value) cell.className = "text";
      if (key === "id" && Object.hasOwn(data.anchors, value)) {
        const link = document.createElement("a");
        cell.append(Object.assign(link, { href: "#" + data.anchors[value], textContent: value }));
      } else if (value === null) {
        const none = document.createElement("span");
        cell.append(Object.assign(none, { className: "none", title: "no value", textContent: "–" }));
      } else {
        cell.textContent = digits >= 0 ? number(value, digits) : value;
      }
    });
    return line;
  };

  const render = () => {
    const wanted = find.value.trim().toLowerCase();
    const searched = [place.id, place.speaker, place.source, place.failures];
    const rows = data.rows.filter((row) =>
      (system.value === "" || row[place.system] === Number(system.value)) &&
      (!wanted || searched.some((i) => row[i].toLowerCase().includes(wanted))));
    rows.sort(compare);
    const visible = rows.slice(0, limit);
    table.tBodies[0].replaceChildren(...visible.map(element));
    status.textContent = visible.length < rows.length
      ? `The first ${visible.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows.`
      : rows.length === 1 ? "1 row." : `${rows.length.toLocaleString("en")} rows.`;
    all.hidden = visible.length === rows.length;
    all.textContent = rows.length - limit <= more ? "Show all" : `Show ${more.toLocaleString("en")} more`;
    heads.forEach((head, i) => {
      if (i === sorted.column) head.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };

  const refresh = () => {
    limit = data.shown;
    render();
  };

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      sorted = { column: i, sign: sorted.column === i ? -sorted.sign : 1 };
      refresh();
    });
  });
  system.addEventListener("change", refresh);
  find.addEventListener("input", refresh);
  all.addEventListener("click", () => { limit += more; render(); });
  document.getElementById("files-controls").hidden = false;
  render();
})();
