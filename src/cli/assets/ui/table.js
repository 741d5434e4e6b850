// A table of which only the rows in sight exist, so that thousands scroll as ten do.

const ROW = 28;
const AROUND = 6;

class Table {
	// columns: [{name, width, cell(row) → text or node, sort(row), right, from}]. Columns with `from` are shown
	// where there is room, the ones with the least first.
	constructor({ label, columns, key, open, empty, level }) {
		Object.assign(this, { columns, key, open, empty, level });
		this.rows = [];
		this.shown = [];
		this.words = "";
		this.order = { column: 0, down: false };
		this.live = new Map();
		this.head = h("div.row.head", { role: "row", "aria-rowindex": 1 });
		this.space = h("div.space", { role: "rowgroup" });
		this.note = h("p.empty", { hidden: true });
		this.element = h("div.table", { role: "grid", "aria-label": label, tabindex: 0 }, h("div", { role: "rowgroup", class: "headgroup" }, this.head), this.space, this.note);
		this.draw = eachFrame(() => this.#draw());
		this.element.addEventListener("scroll", this.draw, { passive: true });
		this.element.addEventListener("click", (event) => this.#clicked(event));
		new ResizeObserver(() => this.#resized()).observe(this.element);
		this.#header();
	}

	set(rows) {
		this.rows = rows;
		this.#arrange();
	}

	filter(words) {
		this.words = words.toLowerCase();
		this.#arrange();
	}

	get row() {
		return this.shown.find((row) => this.key(row) === this.selected);
	}

	select(key, quietly) {
		this.selected = key;
		if (!quietly) this.#reveal();
		this.draw();
	}

	move(by) {
		if (!this.shown.length) return;
		const at = this.shown.findIndex((row) => this.key(row) === this.selected);
		// With no row selected, from beyond the end that is left behind.
		const from = at >= 0 ? at : by > 0 ? -1 : this.shown.length;
		const to = Math.max(0, Math.min(this.shown.length - 1, from + by));
		this.select(this.key(this.shown[to]));
	}

	#arrange() {
		const words = this.words.split(/\s+/).filter(Boolean);
		const column = this.columns[this.order.column] ?? this.columns[0];
		const value = column.sort ?? column.cell;
		const found = words.length ? this.rows.filter((row) => {
			const text = this.text(row);
			return words.every((word) => (word.startsWith("!") && word.length > 1 ? !text.includes(word.slice(1)) : text.includes(word)));
		}) : [...this.rows];
		const sign = this.order.down ? -1 : 1;
		const keys = new Map(found.map((row) => [row, value(row)]));
		found.sort((a, b) => sign * compare(keys.get(a), keys.get(b)));
		this.shown = found;
		this.element.setAttribute("aria-rowcount", found.length + 1);
		this.space.style.height = `${found.length * ROW}px`;
		this.note.hidden = found.length > 0;
		this.note.textContent = this.rows.length ? `Nothing matches “${this.words}”.` : this.empty?.() ?? "There are none.";
		this.onarranged?.();
		this.draw();
	}

	// What a filter looks at: the words of a row, not its numbers.
	text(row) {
		const values = this.columns.map((column) => (column.sort ?? column.cell)(row));
		return values.filter((value) => typeof value === "string").join(" ").toLowerCase();
	}

	#header() {
		this.visible = this.#fitting();
		const template = this.visible.map((column) => column.width).join(" ");
		this.element.style.setProperty("--columns", template);
		this.head.replaceChildren(...this.visible.map((column) => {
			const index = this.columns.indexOf(column);
			const mine = this.order.column === index;
			const sort = () => {
				this.order = { column: index, down: mine && !this.order.down };
				this.#header();
				this.#arrange();
			};
			return h("div", { role: "columnheader", class: column.right ? "right" : "", "aria-sort": mine ? (this.order.down ? "descending" : "ascending") : "none" },
				button([column.name, mine && h("span.arrow", { "aria-hidden": "true" }, this.order.down ? "↓" : "↑")], sort, { tabindex: -1 }));
		}));
		this.live.clear();
		this.space.replaceChildren();
	}

	#fitting() {
		const least = (column) => Number.parseInt(column.width.replace("minmax(", ""), 10) + 14;
		let room = this.element.clientWidth - 18;
		const fits = new Set();
		for (const column of this.columns.toSorted((a, b) => (a.from ?? 0) - (b.from ?? 0))) {
			room -= least(column);
			if (room >= 0 || !column.from) fits.add(column);
		}
		return this.columns.filter((column) => fits.has(column));
	}

	#resized() {
		if (this.#fitting().length !== this.visible.length) this.#header();
		this.draw();
	}

	#draw() {
		const height = this.element.clientHeight;
		const first = Math.max(0, Math.floor(this.element.scrollTop / ROW) - AROUND);
		const last = Math.min(this.shown.length, Math.ceil((this.element.scrollTop + height) / ROW) + AROUND);
		const wanted = new Set();
		for (let index = first; index < last; index += 1) {
			const row = this.shown[index];
			const key = this.key(row);
			wanted.add(key);
			let line = this.live.get(key);
			if (!line) {
				line = this.#line(key);
				this.live.set(key, line);
				this.space.append(line.element);
			}
			this.#refresh(line, row, index, key);
		}
		for (const [key, line] of this.live) {
			if (wanted.has(key)) continue;
			line.element.remove();
			this.live.delete(key);
		}
		const current = this.live.get(this.selected);
		if (current) this.element.setAttribute("aria-activedescendant", current.element.id);
		else this.element.removeAttribute("aria-activedescendant");
	}

	#line(key) {
		const cells = this.visible.map((column) => h("div.cell", { role: "gridcell", class: column.class ?? "" }));
		for (const [index, column] of this.visible.entries()) cells[index].classList.add("cell", ...(column.right ? ["right"] : []));
		Table.next = (Table.next ?? 0) + 1;
		return { cells, element: h("div.row", { role: "row", id: `row${Table.next}`, "data-key": key }, cells), said: [] };
	}

	#refresh(line, row, index, key) {
		line.element.style.transform = `translateY(${index * ROW}px)`;
		line.element.setAttribute("aria-rowindex", index + 2);
		const selected = key === this.selected;
		line.element.classList.toggle("selected", selected);
		line.element.setAttribute("aria-selected", selected);
		for (const [at, column] of this.visible.entries()) {
			const value = column.cell(row) ?? "";
			const said = value instanceof Node ? value.title || value.textContent : String(value);
			// Nodes are exchanged only when what they tell has changed: a picture drawn anew flickers.
			const mark = value instanceof Node ? `${value.dataset?.mark ?? ""}${value.className}\0${value.textContent}` : said;
			if (line.said[at] === mark) continue;
			line.said[at] = mark;
			line.cells[at].replaceChildren(value);
			line.cells[at].title = said;
		}
	}

	#reveal() {
		const index = this.shown.findIndex((row) => this.key(row) === this.selected);
		if (index < 0) return;
		const top = index * ROW;
		const room = this.element.clientHeight - this.head.offsetHeight;
		if (top < this.element.scrollTop) this.element.scrollTop = top;
		else if (top + ROW > this.element.scrollTop + room) this.element.scrollTop = top + ROW - room;
	}

	#clicked(event) {
		const line = event.target.closest(".row[data-key]");
		if (!line || event.target.closest("a")) return;
		this.select(line.dataset.key, true);
		const row = this.row;
		if (row) this.open?.(row);
	}
}

const collator = new Intl.Collator("en", { numeric: true });

function compare(a, b) {
	if (a instanceof Node) a = a.textContent;
	if (b instanceof Node) b = b.textContent;
	if (typeof a === "number" && typeof b === "number") return a - b;
	return collator.compare(String(a ?? ""), String(b ?? ""));
}
