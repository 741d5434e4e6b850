// Objects as YAML: as text, and as coloured lines.

const PLAIN = /^[A-Za-z_./$](?:[\w ./$@+=()~^<>;-]|:(?=[^ ]))*$/;
const WORDS = /^(?:~|null|true|false|yes|no|on|off|y|n|\.inf|\.nan)$/i;

function scalar(value) {
	if (value === null) return ["null", "literal"];
	if (typeof value !== "string") return [String(value), "literal"];
	const plain = PLAIN.test(value) && !WORDS.test(value) && !value.endsWith(" ") && !/^\.?\d/.test(value) && !/ #/.test(value);
	return [plain ? value : JSON.stringify(value), "string"];
}

// Whether a text reads well, and back, as a block.
const isBlock = (value) => typeof value === "string" && value.includes("\n") && !/[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\ufeff]|^\s|\t/.test(value.slice(0, 1) + value.replaceAll("\t", " ")) && value.trim() !== "";

// Lines of [indentation, key, text, class].
function yamlLines(value, depth = 0, lines = []) {
	const entries = Array.isArray(value) ? value.map((item) => [null, item]) : Object.entries(value);
	for (const [name, item] of entries) {
		const key = name === null ? "-" : `${scalar(name)[0]}:`;
		if (isBlock(item)) {
			const chomp = item.endsWith("\n\n") ? "+" : item.endsWith("\n") ? "" : "-";
			lines.push([depth, key, `|${chomp}`, "mark"]);
			const text = item.endsWith("\n") ? item.slice(0, -1) : item;
			for (const line of text.split("\n")) lines.push([line ? depth + 1 : 0, "", line, "string"]);
		} else if (item !== null && typeof item === "object" && Object.keys(item).length) {
			if (name === null) {
				// The first line of an item stands beside its dash.
				const inner = yamlLines(item, depth + 1);
				inner[0] = [depth, `- ${inner[0][1]}`, inner[0][2], inner[0][3]];
				lines.push(...inner);
			} else {
				lines.push([depth, key, "", ""]);
				yamlLines(item, depth + 1, lines);
			}
		} else if (item !== null && typeof item === "object") {
			lines.push([depth, key, Array.isArray(item) ? "[]" : "{}", "literal"]);
		} else {
			const [text, type] = scalar(item);
			lines.push([depth, key, text, type]);
		}
	}
	return lines;
}

function yamlText(value) {
	return yamlLines(value).map(([depth, key, text]) => `${"  ".repeat(depth)}${key}${key && text ? " " : ""}${text}\n`).join("");
}

function yamlView(value) {
	const pre = h("pre.yaml", { tabindex: 0 });
	for (const [depth, key, text, type] of yamlLines(value)) {
		pre.append("  ".repeat(depth), h("span.key", null, key), key && text ? " " : "", text ? h(`span.${type}`, null, text) : "", "\n");
	}
	return pre;
}
