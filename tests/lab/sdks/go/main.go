// Reads Kafka messages as JSON lines, and writes the CloudEvents that the official Go SDK reads from them.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
)

type message struct {
	Headers map[string]string `json:"headers"`
	Value   string            `json:"value"`
}

type event struct {
	Attributes map[string]any  `json:"attributes"`
	Data       json.RawMessage `json:"data"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var input message
		if err := json.Unmarshal(lines.Bytes(), &input); err != nil {
			log.Fatal(err)
		}
		headers := map[string][]byte{}
		for name, value := range input.Headers {
			headers[name] = []byte(value)
		}
		read, err := readEvent(kafka_sarama.NewMessage([]byte(input.Value), input.Headers["content-type"], headers))
		if err != nil {
			log.Fatalf("%v in %s", err, lines.Text())
		}
		if err := output.Encode(read); err != nil {
			log.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}

func readEvent(source *kafka_sarama.Message) (*event, error) {
	read, err := binding.ToEvent(context.Background(), source)
	if err != nil {
		return nil, err
	}
	if err := read.Validate(); err != nil {
		return nil, err
	}
	attributes := map[string]any{
		"specversion":     read.SpecVersion(),
		"id":              read.ID(),
		"source":          read.Source(),
		"type":            read.Type(),
		"time":            read.Time().Format(time.RFC3339Nano),
		"datacontenttype": read.DataContentType(),
		"dataschema":      read.DataSchema(),
	}
	if read.Subject() != "" {
		attributes["subject"] = read.Subject()
	}
	for name, value := range read.Extensions() {
		attributes[name] = value
	}
	return &event{attributes, read.Data()}, nil
}
