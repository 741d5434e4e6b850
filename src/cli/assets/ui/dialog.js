// Questions, the list of keys, and the list of everything there is to go to.

function show(dialog) {
	const before = document.activeElement;
	document.body.append(dialog);
	dialog.addEventListener("close", () => {
		dialog.remove();
		before?.focus?.({ preventScroll: true });
	});
	dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
	dialog.showModal();
	return dialog;
}

// Asks before something is done. `fields` are inputs; the answer is whether to go on.
function confirmed({ title, text, go, danger, fields = [] }) {
	return new Promise((resolve) => {
		let answer = false;
		const dialog = h("dialog", { "aria-label": title });
		const form = h("form", { onsubmit: (event) => {
			event.preventDefault();
			answer = true;
			dialog.close();
		} },
		h("h2", null, title), text && h("p", null, text), fields,
		h("div.buttons", null, button("Cancel", () => dialog.close()), h(danger ? "button.danger" : "button.primary", { type: "submit" }, go)));
		dialog.append(form);
		dialog.addEventListener("close", () => resolve(answer));
		show(dialog);
		(fields[0]?.querySelector("input") ?? form.querySelector("[type=submit]")).focus();
	});
}

const KEYS = [
	["Lists", [
		["j k, ↓ ↑", "next, previous"], ["g G", "first, last"], ["Enter", "open"], ["/", "filter; !word leaves out"], ["n", "choose a namespace"],
		[":", "go to any resource"], ["1 – 9", "the views at the left"],
	]],
	["What is selected", [
		["l", "logs"], ["s", "shell"], ["y, d", "YAML"], ["e", "events"], ["t", "life of a pod: its waterfall"], ["w", "why a pod does not start"],
		["x", "delete"], ["r", "restart"], ["+", "scale"], ["c", "cordon, uncordon"], ["D", "drain"],
	]],
	["Everywhere", [["Esc", "back"], ["[ ]", "previous, next tab"], ["f", "details over the whole width"], ["T", "light or dark"], ["?", "this list"]]],
];

function showKeys() {
	const dialog = h("dialog.keys", { "aria-label": "Keys" });
	dialog.append(h("h2", null, "Keys"), h("div.columns", null, KEYS.map(([title, keys]) =>
		h("section", null, h("h3", null, title), h("dl", null, keys.map(([key, what]) => [
			h("dt", null, key.split(/(, | – | )/).map((part) => (/^(, | – | )$/.test(part) ? part : h("kbd", null, part)))),
			h("dd", null, what)]))))),
	h("div.buttons", null, button("Close", () => dialog.close())));
	show(dialog);
	dialog.querySelector(".buttons button").focus();
}

// Chooses one of `items`, [{text, note, go}], by typing a part of it. What `later` brings is added: what is
// typed until then must not be taken for keys of the list below.
function choose(label, items, later) {
	let found = items;
	let at = 0;
	const input = h("input", { type: "text", placeholder: label, "aria-label": label, role: "combobox", "aria-expanded": "true", "aria-controls": "choices", autocomplete: "off", spellcheck: "false" });
	const list = h("div.choices", { role: "listbox", id: "choices" });
	const dialog = h("dialog.palette", { "aria-label": label }, input, list);
	const pick = (item) => {
		dialog.close();
		item?.go();
	};
	const draw = () => {
		list.replaceChildren(...found.slice(0, 200).map((item, index) =>
			h("div", { role: "option", id: `choice${index}`, class: index === at ? "selected" : "", "aria-selected": index === at, onclick: () => pick(item) },
				h("span", null, item.text), h("span.dim", null, item.note))));
		if (!found.length) list.replaceChildren(h("p.empty", null, "There is no such thing."));
		input.setAttribute("aria-activedescendant", found.length ? `choice${at}` : "");
		list.querySelector(".selected")?.scrollIntoView({ block: "nearest" });
	};
	const find = () => {
		const words = input.value.toLowerCase().trim();
		const rank = (item) => (item.text.toLowerCase().startsWith(words) || item.short?.includes(words) ? 0 : 1);
		found = items.filter((item) => `${item.text} ${item.note} ${item.short ?? ""}`.toLowerCase().includes(words));
		found.sort((a, b) => rank(a) - rank(b));
		at = 0;
		draw();
	};
	later?.then((more) => {
		items = [...items, ...more];
		find();
	}, (error) => toast(error.message, true));
	input.addEventListener("input", find);
	input.addEventListener("keydown", (event) => {
		const by = { ArrowDown: 1, ArrowUp: -1, Tab: event.shiftKey ? -1 : 1 }[event.key];
		if (by) {
			at = Math.max(0, Math.min(found.length - 1, at + by));
			draw();
		} else if (event.key === "Enter") pick(found[at]);
		else return;
		event.preventDefault();
	});
	draw();
	show(dialog);
	input.focus();
}
