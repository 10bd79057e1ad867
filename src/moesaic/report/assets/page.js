"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const SVG = "http://www.w3.org/2000/svg";
  const written = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-4 || size >= 1e6) return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");  // as numbers.py
    return value.toLocaleString("en", { maximumSignificantDigits: 4 });
  };

  // Colours: as the system, light, dark.
  const theme = document.getElementById("theme");
  const themes = { Auto: "as the system", Light: "light", Dark: "dark" };
  const paint = (name) => {
    theme.textContent = name;
    theme.setAttribute("aria-label", "Colours: " + themes[name]);
    if (name === "Auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name.toLowerCase();
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const names = Object.keys(themes);
    paint(names[(names.indexOf(theme.textContent) + 1) % names.length]);
  });

  // One run at a time.
  const picker = document.getElementById("run");
  const choose = () => all("[data-run]").forEach((part) => { part.hidden = part.dataset.run !== picker.value; });
  if (picker) {
    picker.parentElement.hidden = false;
    picker.addEventListener("change", choose);
    choose();
  }

  // A word beside the pointer or the focus.
  const tip = document.getElementById("tip");
  const say = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(8, Math.min(x + 14, room)) + "px";
    tip.style.top = y + 16 + "px";
  };
  const hush = () => { tip.hidden = true; };
  all("[data-tip]").forEach((mark) => {
    const show = () => {
      const box = mark.getBoundingClientRect();
      say(mark.dataset.tip, box.right - 10 + scrollX, box.bottom - 12 + scrollY);
    };
    for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, show);
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hush);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });

  // Where a pointer is, in the units of a drawing.
  const inside = (svg, event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [point.x, point.y];
  };

  data.runs.forEach((run) => {
    const part = document.querySelector(`.experts[data-run="${run.number}"]`);
    if (!part || !run.tables.length) return;
    const tables = run.tables.map((place) => data.tables[place]);
    const map = part.querySelector("svg.map");
    const cursor = map.querySelector(".cursor");
    const digits = map.querySelector(".digits");
    const [left, top, wide, high] = ["left", "top", "wide", "high"].map((name) => +map.dataset[name]);
    const rows = tables[0].rows;
    let shown = tables[0], at = null;

    const colour = (table, value) =>
      table.widths ? "w" + value : "s" + table.edges.filter((edge) => edge <= value).length;

    // The map, drawn for another table: as heat_map.py draws it.
    const draw = (table) => {
      const pieces = {};
      table.rows.forEach((row, layer) => row.forEach((value, expert) => {
        const name = colour(table, value);
        (pieces[name] ||= []).push(`M${left + expert * wide} ${top + layer * high}h${wide - 1}v${high - 1}h${1 - wide}z`);
      }));
      const cells = map.querySelector(".cells");
      cells.replaceChildren(...Object.keys(pieces).sort().map((name) => {
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("class", name);
        path.setAttribute("d", pieces[name].join(""));
        return path;
      }));
      if (digits) digits.style.display = table === tables[0] ? "" : "none";
    };

    const numbers = (table) => {
      const body = part.querySelector(".numbers tbody");
      const names = all("th", body).map((cell) => cell.textContent);
      part.querySelector(".numbers thead th:last-child").textContent =
        `${table.name}${table.unit ? ", " + table.unit : ""}, of experts 0, 1, 2, …`;
      all("tr", body).forEach((line, layer) => { line.lastElementChild.textContent = table.rows[layer].map(written).join(" "); });
      return names;
    };

    const show = (table) => {
      shown = table;
      draw(table);
      const legend = part.querySelector(".map-card .legend");
      legend.replaceChildren(...table.legend.map(([name, words]) => {
        const item = document.createElement("li");
        const swatch = document.createElement("span");
        swatch.className = "swatch " + name;
        item.append(swatch, words);
        return item;
      }));
      part.querySelector(".about").textContent = table.about + (table.unit && !table.widths ? ` Unit: ${table.unit}.` : "");
      map.setAttribute("aria-label",
        `Map of ${table.name}: ${rows.length} layers. Arrow keys move from expert to expert.`);
      numbers(table);
      if (at) tell();
    };

    const select = part.querySelector(".measure");
    select.parentElement.hidden = false;
    select.addEventListener("change", () => show(tables[+select.value]));

    // One expert: its cell, its dots, its values.
    const inspector = part.querySelector(".inspector");
    const list = inspector.querySelector("dl");
    inspector.hidden = false;
    const tell = () => {
      const [layer, expert] = at;
      inspector.querySelector(".who").textContent = `Layer ${run.layers[layer]}, expert ${expert}`;
      inspector.querySelector(".hint").hidden = true;
      const parts = [];
      let group = "";
      tables.forEach((table) => {
        if (table.group !== group) {
          group = table.group;
          const heading = document.createElement("dt");
          heading.className = "group";
          heading.textContent = group;
          parts.push(heading);
        }
        const name = document.createElement("dt");
        const value = document.createElement("dd");
        name.textContent = table.name;
        value.textContent = written(table.rows[layer][expert]);
        if (table === shown) value.className = "shown";
        parts.push(name, value);
      });
      list.replaceChildren(...parts);
    };
    const plots = all("svg.scatter", part).map((svg) => {
      const axis = (name) => {
        const table = tables.find((each) => each.key === svg.dataset[name]);
        const [low, high_, start, end, log] = svg.dataset[name + "scale"].split(" ").map(Number);
        const f = log ? Math.log : (x) => x;
        return { table, pixel: (value) => start + ((f(value) - f(low)) / (f(high_) - f(low))) * (end - start) };
      };
      const x = axis("x"), y = axis("y");
      const dots = rows.flatMap((row, layer) => row.map((_, expert) => (
        { layer, expert, x: x.pixel(x.table.rows[layer][expert]), y: y.pixel(y.table.rows[layer][expert]) })));
      return { svg, x, y, ring: svg.querySelector(".ring"), dots };
    });
    const go = (layer, expert) => {
      at = [layer, expert];
      cursor.setAttribute("x", left + expert * wide);
      cursor.setAttribute("y", top + layer * high);
      cursor.classList.add("on");
      plots.forEach((plot) => {
        const dot = plot.dots.find((each) => each.layer === layer && each.expert === expert);
        plot.ring.setAttribute("cx", dot.x);
        plot.ring.setAttribute("cy", dot.y);
        plot.ring.classList.add("on");
      });
      tell();
    };

    const cellAt = (event) => {
      const [x, y] = inside(map, event);
      const layer = Math.floor((y - top) / high), expert = Math.floor((x - left) / wide);
      return layer >= 0 && expert >= 0 && rows[layer] && expert < rows[layer].length ? [layer, expert] : null;
    };
    for (const kind of ["pointermove", "pointerdown"]) {
      map.addEventListener(kind, (event) => { const cell = cellAt(event); if (cell) go(...cell); });
    }
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const bounded = (value, count) => Math.max(0, Math.min(count - 1, value));
    map.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      let [layer, expert] = at || [0, 0];
      if (event.key === "Home") expert = 0;
      else if (event.key === "End") expert = rows[layer].length - 1;
      else if (at) { layer = bounded(layer + step[0], rows.length); expert = bounded(expert + step[1], rows[layer].length); }
      go(layer, expert);
    });
    map.addEventListener("focus", () => { if (!at && map.matches(":focus-visible")) go(0, 0); });

    // The dots of the scatter plots.
    plots.forEach(({ svg, x, y, dots }) => {
      const order = [...dots].sort((a, b) => a.x - b.x);
      const point = (dot) => {
        go(dot.layer, dot.expert);
        const box = svg.getBoundingClientRect(), scale = box.width / 400;
        const values = [tables[0], x.table, y.table].map((t) => `${t.name} ${written(t.rows[dot.layer][dot.expert])}`);
        say([`Layer ${run.layers[dot.layer]}, expert ${dot.expert}`, ...values].join("\n"),
          box.left + dot.x * scale + scrollX, box.top + dot.y * scale + scrollY);
      };
      const near = (event) => {
        const [px, py] = inside(svg, event);
        let best = null, least = 20 ** 2;
        for (const dot of dots) {
          const distance = (dot.x - px) ** 2 + (dot.y - py) ** 2;
          if (distance < least) [best, least] = [dot, distance];
        }
        if (best) point(best); else hush();
      };
      for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, near);
      svg.addEventListener("pointerleave", hush);
      svg.addEventListener("blur", hush);
      svg.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const place = at ? order.findIndex((dot) => dot.layer === at[0] && dot.expert === at[1]) : -1;
        point(order[bounded(place + step, order.length)]);
      });
    });
    [map, ...plots.map((plot) => plot.svg)].forEach((svg) => {
      svg.classList.add("ready");
      svg.setAttribute("tabindex", "0");
      svg.setAttribute("role", "application");
      svg.setAttribute("aria-roledescription", "figure");
    });
    map.setAttribute("aria-label", map.getAttribute("aria-label") + " Arrow keys move from expert to expert.");
  });
})();
