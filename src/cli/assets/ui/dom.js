// Elements. What comes from the cluster is set as text and never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (value == null || (value === false && !name.startsWith("aria-"))) continue;
		if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
		// Set through the object model: the page's policy forbids style attributes.
		else if (name === "style") for (const [key, to] of Object.entries(value)) node.style.setProperty(key, to);
		else node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
	}
	node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
	return node;
}

// h("td.name.dim", {title: "…"}, child, …)
function h(tag, attributes, ...children) {
	const [name, ...classes] = tag.split(".");
	const node = document.createElement(name || "div");
	if (classes.length) node.className = classes.join(" ");
	return fill(node, attributes, children);
}

// The same for SVG.
function svg(tag, attributes, ...children) {
	const [name, ...classes] = tag.split(".");
	const node = document.createElementNS(SVG, name);
	if (classes.length) node.setAttribute("class", classes.join(" "));
	return fill(node, attributes, children);
}

const $ = (id) => document.getElementById(id);

function button(label, onclick, attributes) {
	return h("button", { type: "button", onclick, ...attributes }, label);
}

// Calls `work` once before the next picture is drawn, however often it is asked for.
function eachFrame(work) {
	let asked = false;
	return () => {
		if (asked) return;
		asked = true;
		requestAnimationFrame(() => {
			asked = false;
			work();
		});
	};
}

// What a view registers to be undone when it is left.
class Scope {
	#undo = [];
	add(undo) {
		this.#undo.push(undo);
	}
	every(milliseconds, work) {
		const timer = setInterval(work, milliseconds);
		this.add(() => clearInterval(timer));
	}
	on(target, name, work) {
		target.addEventListener(name, work);
		this.add(() => target.removeEventListener(name, work));
	}
	end() {
		for (const undo of this.#undo.splice(0)) undo();
	}
}

let toastTimer;
function toast(text, bad) {
	const place = $("toast");
	place.textContent = text;
	place.className = bad ? "bad" : "";
	place.hidden = false;
	clearTimeout(toastTimer);
	toastTimer = setTimeout(() => (place.hidden = true), bad ? 12000 : 4000);
}
